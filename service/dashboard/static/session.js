// A page whose session has ended, as with a restart, is refused its socket and would try again for ever. Where asking
// for it anew leads elsewhere, to the login, it goes there; where nobody answers, or the page would come, it stays.
addEventListener("DOMContentLoaded", () => {
  window.socket?.io.on("reconnect_error", async () => {
    const answer = await fetch(location.href, { method: "HEAD", redirect: "manual" }).catch(() => null);
    if (answer?.type === "opaqueredirect") location.reload();
  });
});
