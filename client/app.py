"""The Flower ClientApp: receives a message, finds its site, returns the guarded answer."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.rounds import answer, decline
from client.secure_aggregation.answer import answer_phase, decline_phase
from client.site import Site
from protocol.errors import FoedusError, Refusal, place_of
from protocol.messages import UNKNOWN_RUN, Kind, Reply
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.wire import SECURE

log = logging.getLogger("foedus.client")

SITE_CONFIG_KEY = "site-config"


class NoReply(Exception):
    """Raised to Flower instead of what went wrong here; it says nothing on purpose."""


def make_app(find_site: Callable[[Context], Site], refusal: Refusal | None = None) -> ClientApp:
    """A ClientApp over whatever way there is to tell which site a message is for.

    refusal: why every message is declined, before anything of it is followed; None = it is not.
    """
    app = ClientApp()
    desk = _Desk(find_site, refusal)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if SECURE in message.content:
            return desk.take_part(message, context, training=True)
        return desk.respond(message, context, "train")

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return desk.take_part(message, context, training=False)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return desk.respond(message, context, "evaluate")

    return app


@dataclass(frozen=True)
class _Desk:
    """Where messages meet their site. Flower sends the text of whatever is raised to the server."""

    find_site: Callable[[Context], Site]
    refusal: Refusal | None

    def respond(self, message: Message, context: Context, kind: Kind) -> Message:
        """The reply to a request in the clear. Errors: NoReply."""
        try:
            site = self.find_site(context)
            if self.refusal:
                content = decline(site, message.content, kind, self.refusal)
            else:
                content = answer(site, message.content, kind)
            return Message(content, reply_to=message)
        except FoedusError as error:
            log.error("This node has no usable site configuration: %s", error)
            nameless = Reply(UNKNOWN_RUN, 0, RefusalReason.INTERNAL)
            return Message(nameless.to_content(), reply_to=message)
        except Exception as error:
            # Without a receipt nothing may leave, not even a refusal of ours.
            log.error("No reply could be given to a %s request: %s", kind, place_of(error))
            raise NoReply from None

    def take_part(self, message: Message, context: Context, training: bool) -> Message:
        """The reply to a message of a secure session. Errors: NoReply."""
        try:
            site = self.find_site(context)
            if self.refusal:
                content = decline_phase(site, message.content, self.refusal)
            else:
                content = answer_phase(site, message.content, training=training)
            return Message(content, reply_to=message)
        except FoedusError as error:
            log.error("This node has no usable site configuration: %s", error)
            raise NoReply from None
        except Exception as error:
            # Nothing is signed without a site, and nothing may leave without a receipt.
            log.error("No reply could be given in a secure session: %s", place_of(error))
            raise NoReply from None


def site_from_node_config(context: Context) -> Site:
    """The site whose site.yaml the SuperNode was started with.

    Errors: FoedusError telling how to start the SuperNode.
    """
    path = context.node_config.get(SITE_CONFIG_KEY)
    if not isinstance(path, str):
        raise FoedusError(
            f"Expected {SITE_CONFIG_KEY} in the node configuration, got none. Start the SuperNode "
            f"with --node-config '{SITE_CONFIG_KEY}=\"/path/to/site.yaml\"'."
        )
    return load_site(Path(path))


@functools.lru_cache(maxsize=256)
def load_site(path: Path) -> Site:
    """The one Site object of a site.yaml in this process."""
    return Site.from_file(path)


app = make_app(site_from_node_config)
