"""A private OpenStack Swift, which speaks S3: all its servers over one disk, in a folder of its own."""

import getpass
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from swift.common.ring import RingBuilder

from tests.ray_cluster import free_port

ADDRESS = "127.0.0.1"
KEY, SECRET, REGION = "lgm:guard", "secret", "us-east-1"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": REGION}
STORAGE_SERVERS = ("account", "container", "object")
FILTERS = ("catch_errors", "gatekeeper", "listing_formats", "bulk", "s3api", "tempauth", "copy", "slo")
TIMEOUT = 60


class ObjectStore:
    """`address` is where clients find it once it has started."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._ports = {name: free_port() for name in (*STORAGE_SERVERS, "proxy")}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address = f"http://{ADDRESS}:{self._ports['proxy']}"
        (folder / "disks" / "one").mkdir(parents=True)
        (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = lgm\n")
        for name in STORAGE_SERVERS:
            self._configure(name, _sections(name))
            self._lay_ring(name)
        self._configure("proxy", _proxy_sections())

    def start(self) -> None:
        for name in self._ports:
            program = Path(sys.executable).with_name(f"swift-{name}-server")
            with (self._folder / f"{name}.log").open("ab") as log:
                self._processes.append(
                    subprocess.Popen([program, self._folder / f"{name}.conf"], stdout=log, stderr=log)
                )
        end = time.monotonic() + TIMEOUT
        while not self._works():
            assert time.monotonic() < end, (self._folder / "proxy.log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(TIMEOUT)
        self._processes.clear()

    def _works(self) -> bool:
        """Only when all of its servers listen can it keep an object."""
        once = Config(connect_timeout=1, retries={"max_attempts": 0})
        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name=REGION,
            config=once,
        )
        try:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"yes")
        except (BotoCoreError, ClientError):
            return False
        return True

    def _configure(self, name: str, sections: dict[str, dict[str, str]]) -> None:
        common = {
            "bind_ip": ADDRESS,
            "bind_port": str(self._ports[name]),
            "workers": "0",
            "user": getpass.getuser(),
            "swift_dir": str(self._folder),
            "devices": str(self._folder / "disks"),
            "mount_check": "false",
        }
        written = ""
        for section, options in {"DEFAULT": common, **sections}.items():
            written += "\n".join([f"[{section}]", *(f"{key} = {value}" for key, value in options.items()), ""])
        (self._folder / f"{name}.conf").write_text(written)

    def _lay_ring(self, name: str) -> None:
        """Everything lies on the one disk, once."""
        builder = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
        place = {"region": 1, "zone": 1, "ip": ADDRESS, "port": self._ports[name]}
        builder.add_dev({"id": 0, "device": "one", "weight": 1.0, **place})
        builder.rebalance()
        builder.get_ring().save(str(self._folder / f"{name}.ring.gz"))


def _sections(server: str, filters: tuple[str, ...] = ()) -> dict[str, dict[str, str]]:
    """A server's part of its configuration: the filters that a request goes through, then its application."""
    return {
        "pipeline:main": {"pipeline": " ".join([*filters, f"{server}-server"])},
        f"app:{server}-server": {"use": f"egg:swift#{server}"},
        **{f"filter:{name}": {"use": f"egg:swift#{name}"} for name in filters},
    }


def _proxy_sections() -> dict[str, dict[str, str]]:
    sections = _sections("proxy", FILTERS)
    sections["app:proxy-server"]["account_autocreate"] = "true"
    # By default it would not ask a server for a minute that was still starting.
    sections["app:proxy-server"]["error_suppression_limit"] = "1000000"
    sections["filter:tempauth"][f"user_{KEY.replace(':', '_')}"] = f"{SECRET} .admin"
    sections["filter:s3api"]["location"] = REGION
    return sections
