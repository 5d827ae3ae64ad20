-- Sends the bodies of a plan (see wrk.py) in turn; as fast as answers come, or on a fixed schedule.
-- Prints one line of JSON at the end.

local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long microseconds; } lgm_time;
  int gettimeofday(lgm_time *now, void *zone);
]]

local threads, requests, position = {}, {}, 0
local clock = ffi.new("lgm_time")
ok, refused, failed = 0, 0, 0

local function microseconds()
  ffi.C.gettimeofday(clock, nil)
  return tonumber(clock.seconds) * 1e6 + tonumber(clock.microseconds)
end

local function read_plan(name)
  local plan = assert(io.open(name, "rb"))
  local path, headers, line = plan:read("*l"), {}, plan:read("*l")
  while line ~= "" do
    local key, value = line:match("^(.-): (.*)$")
    headers[key] = value
    line = plan:read("*l")
  end
  for size in function() return plan:read("*l") end do
    requests[#requests + 1] = wrk.format("POST", path, headers, plan:read(tonumber(size)))
  end
  plan:close()
end

-- An open loop: requests are due every 1 / rate seconds, or with a seed at moments of a Poisson process of that rate,
-- however late the answers are.
local function keep_schedule(rate, seed)
  local period, due = 1e6 / rate, nil
  if seed then math.randomseed(seed) end
  function delay()
    local now = microseconds()
    local this = due or now
    due = this + (seed and -math.log(1 - math.random()) * period or period)
    return math.max(0, math.floor((this - now) / 1000))
  end
  function response(status)
    if status >= 200 and status < 300 then ok = ok + 1
    elseif status == 503 then refused = refused + 1
    else failed = failed + 1 end
  end
end

function setup(thread) threads[#threads + 1] = thread end

function init(arguments)
  read_plan(arguments[1])
  if arguments[2] then keep_schedule(tonumber(arguments[2]), tonumber(arguments[3])) end
end

function request()
  position = position % #requests + 1
  return requests[position]
end

function done(summary, latency)
  local counts = { ok = 0, refused = 0, failed = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(counts) do counts[name] = counts[name] + thread:get(name) end
  end
  local errors = summary.errors
  print(string.format(
    '{"seconds": %.6f, "requests": %d, "status_errors": %d, "socket_errors": %d, "timeouts": %d, ' ..
    '"p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, "ok": %d, "refused": %d, "failed": %d}',
    summary.duration / 1e6, summary.requests, errors.status, errors.connect + errors.read + errors.write,
    errors.timeout, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
    counts.ok, counts.refused, counts.failed))
end
