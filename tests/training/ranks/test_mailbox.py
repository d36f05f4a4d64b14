import logging
import time

import pytest

from imgcls.progress import Progress
from imgcls.training.ranks.mailbox import Mailbox, Sender


class LocalMethod:
    """An actor method's handle that calls at once, in this process."""

    def __init__(self, call: object) -> None:
        self.remote = call


class LocalHandle:
    """A handle of a Mailbox in this process."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.count, self.write = LocalMethod(mailbox.count), LocalMethod(mailbox.write)


def test_what_rank_0_counts_and_logs_arrives_once(caplog: pytest.LogCaptureFixture) -> None:
    mailbox = Mailbox()
    with Sender(LocalHandle(mailbox), is_first=True) as sender:
        sender.show(10, "loss 1.0")
        sender.show(5, "loss 0.9")
        logging.getLogger("imgcls.training.x").info("epoch %d", 1)
        sender.show(3, "loss 0.8")
    post = mailbox.take()
    assert post.num_images == 18
    assert post.lines == [(logging.INFO, "epoch 1")]
    assert mailbox.take().num_images == 0
    with caplog.at_level(logging.INFO, "imgcls"), Progress("training", 18, "images") as progress:
        post.show(progress)
    assert "epoch 1" in caplog.text
    assert "18/18 images" in caplog.text


def test_other_ranks_send_only_warnings() -> None:
    mailbox = Mailbox()
    with Sender(LocalHandle(mailbox), is_first=False) as sender:
        sender.show(10, "")
        logging.getLogger("imgcls.training.x").info("chatter")
        logging.getLogger("imgcls.training.x").warning("left out an image")
    post = mailbox.take()
    assert post.num_images == 0
    assert post.lines == [(logging.WARNING, "left out an image")]


def test_silence_counts_while_workers_have_something_to_do() -> None:
    mailbox = Mailbox()
    time.sleep(0.05)
    assert mailbox.take().silent_s >= 0.05
    mailbox.beat()
    assert mailbox.take().silent_s < 0.05
    mailbox.beat(is_done=True)
    time.sleep(0.05)
    assert mailbox.take().silent_s == 0
    # New workers are to start, as after a notice: they may have to wait for a node.
    mailbox.beat()
    time.sleep(0.05)
    assert mailbox.take().silent_s >= 0.05
