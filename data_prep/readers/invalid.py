"""What makes one document unusable, found while it is read."""


class InvalidDocument(Exception):
    """A document that is left out; `reason` is the name under which it is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_text(text: str) -> int:
    """The text's length in UTF-8.

    Raises:
        InvalidDocument: invalid_utf8 (half of a surrogate pair, which JSON can spell), nul_bytes.
    """
    if "\0" in text:
        raise InvalidDocument("nul_bytes")
    if text.isascii():  # a long text is not copied
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidDocument("invalid_utf8") from error
