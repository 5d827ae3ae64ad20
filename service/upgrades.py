"""uvicorn's protocol, where a request that asks for another protocol than WebSocket is read as if it had not asked.

httptools ends such a request at its head, and uvicorn would take its body for the next one. Some clients ask with
every request, for HTTP/2: `curl --http2`, Java's HttpClient.
"""

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class IgnoringUpgrades(HttpToolsProtocol):
    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        rest: bytes | memoryview = data
        try:
            while rest:
                rest = self._read(rest)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")

    def _read(self, data: bytes | memoryview) -> bytes | memoryview:
        """What is left of it after a head that asks for an upgrade."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._should_upgrade():
                self._read_head_again()
                return memoryview(data)[upgrade.args[0] :]
            self.handle_websocket_upgrade()
        return b""

    def _read_head_again(self) -> None:
        """By a new parser, since the old one is through with it, and with its connection where that is to close."""
        target_and_version = self.url + b" HTTP/" + self.parser.get_http_version().encode()
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        head = [self.parser.get_method() + b" " + target_and_version, *lines, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's: it is left unread
        self.parser.feed_data(b"\r\n".join(head))

    def on_headers_complete(self) -> None:
        if not self._is_read_again():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._is_read_again():
            super().on_message_complete()

    def _is_read_again(self) -> bool:
        return self.parser.should_upgrade() and not self._should_upgrade()
