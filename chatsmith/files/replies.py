"""What a server replies, up to a length and a time: errors too, never unpacked, and from no other server."""

import asyncio
from typing import Any

LONGEST_QUOTE = 300  # characters of what a server says


class RefusedReply(Exception):
    """A reply that is not taken: what the server does, in words that follow its name, and what helps."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy = what, remedy


def guarded(client: type[Any], *, option: str, longest: int, seconds: float) -> Any:
    """A client of httpx, made of this class, that follows no redirects and gives a reply up within bounds.

    Args:
        option: where the user names the server.
        longest: bytes of a reply.
        seconds: from sending a request to the end of its reply.
    Raises:
        RefusedReply: when a request is sent, if the reply leads elsewhere, is packed or too long.
        TimeoutError: likewise.
    """

    class Guarded(client):  # type: ignore[misc]
        async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            async with asyncio.timeout(seconds):
                response = await super().send(request, stream=True, **options)
                try:
                    return type(response)(
                        response.status_code,
                        headers=response.headers,
                        content=await _body(response, option, longest),
                        request=request,
                    )
                finally:
                    await response.aclose()

    return Guarded(follow_redirects=False, headers={"Accept-Encoding": "identity"})


async def _body(response: Any, option: str, longest: int) -> bytes:
    """All of a reply.

    Raises:
        RefusedReply: if it leads elsewhere, is packed, or has no end.
    """
    if response.has_redirect_location:
        where = response.headers["location"][:LONGEST_QUOTE]
        raise RefusedReply(
            f"sends requests on to {where} ({response.status_code}), which would get the key",
            f"Give that address to {option} if it is meant",
        )
    if response.headers.get("content-encoding", "identity") != "identity":
        raise RefusedReply("packs its replies, which nobody asked it for", "Turn that off")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > longest:
            raise RefusedReply(f"says more than {longest >> 20} MiB in one reply", "Look at its log")
    return bytes(body)
