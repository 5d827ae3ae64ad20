"""The files of a multipart/form-data body that is in memory; nothing is ever spooled to disk."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser

from service.errors import FieldFault, InvalidInputError, MalformedBodyError

FIELD = "image"


def read_files(body: bytes, boundary: bytes, *, max_files: int) -> list[tuple[str, bytes]]:
    """(`image[position]`, content) of each file. Raises MalformedBodyError, InvalidInputError."""
    collector = _Collector(max_files)
    parser = FormParser(
        "multipart/form-data",
        collector.add_field,
        collector.add_file,
        collector.end,
        boundary=boundary,
        config={"MAX_MEMORY_FILE_SIZE": len(body) + 1},
    )
    try:
        parser.write(_from_first_boundary(body, boundary))
        parser.finalize()
    except FormParserError as error:
        raise MalformedBodyError(FieldFault("body", f"not multipart/form-data: {error}")) from None
    if not collector.ended:
        raise MalformedBodyError(FieldFault("body", "multipart/form-data ends before its last boundary"))
    return collector.files


def _from_first_boundary(body: bytes, boundary: bytes) -> bytes:
    """Without the preamble that may come before it (RFC 2046, 5.1.1), which the parser refuses."""
    opening = b"\r\n--" + boundary
    preamble = 0 if body.startswith(opening[2:]) else body.find(opening)
    return body[preamble + 2 :] if preamble > 0 else body


class _Collector:
    def __init__(self, max_files: int):
        self.files: list[tuple[str, bytes]] = []
        self.ended = False
        self._max_files = max_files

    def add_file(self, file: File) -> None:
        self._check_name(file.field_name)
        if len(self.files) == self._max_files:
            raise InvalidInputError(FieldFault(FIELD, f"too many files; the limit is {self._max_files}"))
        file.file_object.seek(0)
        self.files.append((f"{FIELD}[{len(self.files)}]", file.file_object.read()))
        file.close()

    def add_field(self, field: Field) -> None:
        self._check_name(field.field_name)
        raise InvalidInputError(FieldFault(FIELD, "must be a file (a part with a filename)"))

    def end(self) -> None:
        self.ended = True

    def _check_name(self, name: bytes | None) -> None:
        if name != FIELD.encode():
            given = (name or b"").decode("utf-8", "replace")[:64]
            raise InvalidInputError(FieldFault(given, f"unknown field; send files in the field {FIELD!r}"))
