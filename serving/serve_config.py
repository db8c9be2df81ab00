"""What a server allows."""

from typing import Annotated

from pydantic import Field

from diffusion.system.limits import MAX_BATCH, MAX_HELD, MAX_STEPS
from diffusion.system.section import NotBool, Section

MAX_IMAGES = 1024  # that any server gives in one answer: of 64×64×3 pixels 16 MB of PNG
MAX_BODY = 64 * 1024  # bytes: a request with 1,024 indices has 20 KB


class ServeConfig(Section):
    """`images` and `steps` at most in one request; `rows` of a network pass; `queue` images held at most.

    A guided image takes two rows. Beyond the queue requests are refused (429). Every `poll` seconds it looks
    whether the champion has changed; when it is to stop it takes at most `drain` seconds for what was begun.
    """

    images: Annotated[int, Field(ge=1, le=MAX_IMAGES), NotBool] = 64
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS), NotBool] = 1000
    rows: Annotated[int, Field(ge=2, le=MAX_BATCH), NotBool] = 64
    queue: Annotated[int, Field(ge=1, le=MAX_HELD), NotBool] = 1024
    poll: Annotated[float, Field(ge=0.1, le=86400), NotBool] = 10.0
    drain: Annotated[float, Field(ge=0, le=3600), NotBool] = 60.0
