"""An order at one site: the messages that are under way, and when the next one is due."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from common.exchange import Working
from common.printable import rough_duration

#: Pause before a failed or unanswered request is repeated; it doubles up to LONGEST_PAUSE_S.
RETRY_S = 5.0
LONGEST_PAUSE_S = 600.0
#: How often blobs are sent at once to a site that lacks no fewer than before.
MOST_RESENDS = 3
#: A site that is online, has nothing in hand and has not answered is asked again after so long;
#: doubled each time, up to the patience's slack.
UNANSWERED_S = 30.0
#: The first message is kept by a site for so long at most, the next one for twice as long, and so
#: on: so its first steps are known soon.
FIRST_WAIT_S = 10.0
#: Messages before the latest whose replies are still taken, should they come.
_EARLIER: Final = 3
_MOST_SLACK: Final = 32.0
#: Of the time that was waited; and at most: a heartbeat is sent with each poll.
_POLL_SHARE: Final = 0.02
LONGEST_POLL_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long sites are waited for.

    Attributes:
        wait_s: how long a site may keep a request before it replies that it is still working.
        slack_s: how long after that a reply may be missing before the message counts as lost,
            where nothing is known of what the site does meanwhile.
        poll_s: the shortest pause between two polls for answers.
        appear_s: a site that has not connected by then is given up; None waits without end,
            and then a site that failed is asked again, too.
    """

    wait_s: float
    slack_s: float
    poll_s: float
    appear_s: float | None

    def pause_s(self, waited_s: float) -> float:
        """Return the pause before the next poll, after so long without an answer.

        Rounds take hours: polls at a short interval would keep the SuperLink busy all the time.
        An answer is thus taken up late by no more than a fiftieth of the time that it took.
        """
        return max(self.poll_s, min(_POLL_SHARE * waited_s, LONGEST_POLL_S))


#: For a simulation, whose sites are all there and fail for good.
SIMULATED = Patience(wait_s=0.0, slack_s=14 * 24 * 3600.0, poll_s=0.1, appear_s=600.0)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a site's SuperNode was seen to do last, in seconds since 1970; 0 is never.

    Attributes:
        waits: it asked for messages, and there was none.
        moves: it fetched or sent a part of a message.
    """

    waits: float
    moves: float


@dataclass(slots=True)
class AskedSite:
    """The state of an order at one site.

    Attributes:
        message: the id of the request that waits for its reply; None where none does.
        earlier: the ids of requests before that one that were not answered.
        sent_at: when the request was sent, in seconds since 1970.
        without_blobs: what was sent may have arrived, so it is not sent again unasked.
        resends: how often blobs were sent since the site lacked fewer than ever, `fewest`.
        reported: the last refusal, which is reported once.
        working: how often the site has replied that it is still working.
        first_step: when it said so first, and the step that it had reached.
    """

    name: str
    state: str = "not asked yet"
    message: str | None = None
    earlier: list[str] = field(default_factory=list[str])
    sent_at: float = 0.0
    lost_at: float = 0.0
    retry_at: float = 0.0
    retries: int = 0
    slack: float = 1.0
    needs: tuple[str, ...] = ()
    without_blobs: bool = False
    resends: int = 0
    fewest: int | None = None
    reported: str = ""
    bytes_down: int = 0
    bytes_up: int = 0
    done: bool = False
    working: int = 0
    first_step: tuple[float, int] | None = None

    def wait_s(self, patience: Patience) -> float:
        """Return how long the site may keep the next message."""
        return min(patience.wait_s, FIRST_WAIT_S * 2**self.working)

    def is_working(self, reply: Working) -> None:
        """Record the step that the site has reached, and ask again: it keeps the next message."""
        now, state = time.monotonic(), "working"
        self.working = min(self.working + 1, 32)
        if reply.steps:
            state = f"working, step {reply.step} of {reply.steps}"
        if self.first_step is None or reply.step < self.first_step[1]:
            self.first_step = (now, reply.step)
        began, first = self.first_step
        if reply.step > first:
            left_s = (now - began) * (reply.steps - reply.step) / (reply.step - first)
            state += f", about {rough_duration(left_s)} left"
        self.retry_now(state)

    def asked(self, message: str, life_s: float) -> None:
        """Record that a message was sent, which counts as lost after `life_s` at the latest."""
        if not self.working:
            self.state = "asked"
        self.message, self.sent_at = message, time.time()
        self.lost_at = time.monotonic() + life_s + RETRY_S

    def is_lost(self, seen: Seen | None, patience: Patience) -> bool:
        """Return whether no reply to the message can be expected any more.

        A SuperNode handles one message at a time and asks for another only then: once it has
        asked in vain after our message, that is lost. So it is if it has been silent for longer
        than a site may keep a message.

        Args:
            seen: None where nobody sees what the site's SuperNode does.
        """
        if time.monotonic() > self.lost_at:
            return True
        if seen is None:
            return False
        unanswered_s = min(UNANSWERED_S * self.slack, patience.slack_s)
        if seen.waits > self.sent_at + unanswered_s:
            return True
        quiet_since = max(self.sent_at, seen.moves)
        return time.time() > quiet_since + patience.wait_s + unanswered_s

    def answered(self, message: str) -> bool:
        """Record that a message's reply has come; return whether it was the latest message."""
        if message == self.message:
            self.message = None
            return True
        self.earlier.remove(message)
        return False

    def ask_again(self) -> None:
        """Give the message up and ask again at once; its reply still counts if it comes."""
        self._set_aside()
        self.state, self.without_blobs, self.retry_at = "no reply, asked again", True, 0.0
        self.slack = min(2 * self.slack, _MOST_SLACK)

    def retry_later(self, state: str) -> None:
        """Ask again after a pause, which doubles each time."""
        self._set_aside()
        self.state, self.without_blobs = state, True
        self.retry_at = time.monotonic() + min(RETRY_S * 2**self.retries, LONGEST_PAUSE_S)
        self.retries = min(self.retries + 1, 32)

    def retry_now(self, state: str) -> None:
        """Ask again at once: the site has replied."""
        self._set_aside()
        self.state, self.retries = state, 0

    def resend(self, digests: Collection[str]) -> None:
        """Send what the site lacks: at once, as long as that gets less."""
        missing = len(set(digests) & set(self.needs))
        if self.fewest is None or missing < self.fewest:
            self.fewest, self.resends = missing, 0
        self.resends += 1
        (self.retry_now if self.resends <= MOST_RESENDS else self.retry_later)("downloading")
        self.without_blobs = False

    def _set_aside(self) -> None:
        if self.message is not None:
            self.earlier = [*self.earlier, self.message][-_EARLIER:]
        self.message = None
