"""What model servers serve: published as they join, compared, and learned by the web servers."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis
from conftest import new_job, new_web_side, wait_for

from serving.errors import OtherModel, Unavailable
from serving.jobs.job import Answer, Job, Outcome
from serving.jobs.job_queue import KEEP_SERVED_SECONDS, JobQueue
from serving.jobs.membership import Membership
from serving.jobs.model_side import ModelSide
from serving.jobs.served import Served, ServedNow, digest_of, publish

RESNET = Served("ResNet50", "0123456789ab", "float32", "openvino", 224, 224, 3, digest_of(["cat", "dog"]))
INCEPTION = replace(RESNET, name="InceptionV3", width=299, height=298)

Join = Callable[..., Membership]


@pytest.fixture
def join(queue: JobQueue) -> Join:
    def join(served: Served | None) -> Membership:
        options = {"lease_seconds": 10.0, "max_attempts": 3, "result_ttl_seconds": 60}
        return ModelSide(queue, **options, served=served, labels=["cat", "dog"]).join()  # type: ignore[arg-type]

    return join


@pytest.mark.parametrize(
    "other",
    [
        replace(RESNET, name="MobileNetV2"),
        replace(RESNET, width=299),
        replace(RESNET, height=299),
        replace(RESNET, channels=1),
        replace(RESNET, labels_digest=digest_of(["dog", "cat"])),
    ],
    ids=["name", "width", "height", "channels", "labels"],
)
def test_another_model_is_refused_while_a_model_server_lives(join: Join, raw: redis.Redis, other: Served) -> None:
    first = join(RESNET)
    with pytest.raises(OtherModel) as refusal:
        join(other)
    says = str(refusal.value)
    assert first.name in says
    assert f"with {RESNET.in_words(other)}; this model server has {other.in_words(RESNET)}," in says
    assert RESNET.in_words(other) != other.in_words(RESNET)  # the sentence tells what differs
    assert "IMAGE_QUEUE" in says
    assert raw.zcard("{image_queue}:workers") == 1  # nothing remains of the one that was refused
    assert raw.hlen("{image_queue}:serves") == 1
    first.leave()
    join(other)


def test_a_dead_model_server_refuses_nobody(join: Join, raw: redis.Redis, queue: JobQueue) -> None:
    dead = join(RESNET)
    raw.zadd("{image_queue}:workers", {dead.name: queue.now() - 1})
    alive = join(INCEPTION)
    assert alive.return_expired().jobs == 0
    assert list(raw.hkeys("{image_queue}:serves")) == [alive.name.encode()]


def test_model_servers_that_publish_nothing_get_on_with_all(join: Join, raw: redis.Redis) -> None:
    """The tutorial's, and those of an older release."""
    join(None)
    join(RESNET)
    join(None)
    raw.hset("{image_queue}:serves", "stranger", "no JSON")
    raw.zadd("{image_queue}:workers", {"stranger": 1e12})
    join(replace(RESNET, version="another", precision="bfloat16", runtime="keras"))
    with pytest.raises(OtherModel):
        join(INCEPTION)


def test_the_size_is_that_of_the_model_server_that_lives(
    join: Join, queue: JobQueue, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    unset, set_by_hand = ServedNow(queue), ServedNow(queue, (64, 48))
    assert (unset.input_shape(), set_by_hand.input_shape()) == ((224, 224, 3), (48, 64, 3))
    member = join(INCEPTION)
    # The first one that they meet counts for the next request, not a second later.
    wait_for(lambda: unset.input_shape() == (298, 299, 3))
    for _ in range(2):
        unset.look()
        set_by_hand.look()
    assert (unset.input_shape(), set_by_hand.input_shape()) == ((298, 299, 3), (298, 299, 3))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "64×48 is set, but the model server takes 299×298" in warning
    member.leave()
    set_by_hand.look()
    assert set_by_hand.input_shape() == (298, 299, 3)  # its model server is away for a moment, say
    # Web processes that start while no model server lives.
    assert ServedNow(queue).input_shape() == (298, 299, 3)
    assert ServedNow(queue, (64, 48)).input_shape() == (48, 64, 3)
    raw.set("{image_queue}:served_last", "[]")
    assert ServedNow(queue).input_shape() == (224, 224, 3)


def test_a_web_server_for_one_model_takes_no_answer_of_another(join: Join, queue: JobQueue) -> None:
    side, any_model = new_web_side(queue, own_name="InceptionV3"), new_web_side(queue)
    side.check_room()  # nobody serves: the request may wait
    member = join(RESNET)
    any_model.check_room()
    wait_for(lambda: side.served.look() or side.served._alive)
    with pytest.raises(Unavailable, match="served by the model ResNet50, and this web server is for InceptionV3"):
        side.check_room()
    member.leave()
    side.served.look()
    side.check_room()  # nobody serves
    with pytest.raises(Unavailable, match="served by the model ResNet50"):  # it answered while it was there
        side.served.check_answer(Answer("[]", RESNET.about()))
    join(INCEPTION)
    side.served.look()
    side.check_room()
    side.served.check_answer(Answer("[]", INCEPTION.about()))
    side.served.check_answer(Answer("[]"))  # by a model server that tells nothing


def test_a_web_server_learns_how_many_channels_the_model_takes(join: Join, queue: JobQueue) -> None:
    any_pictures, colours_alone = ServedNow(queue), ServedNow(queue, only_colours=True)
    colours_alone.check_name()  # nobody serves: in colours, as the tutorial's
    member = join(replace(RESNET, channels=1))
    wait_for(lambda: any_pictures.input_shape() == (224, 224, 1))
    any_pictures.check_name()
    colours_alone.look()
    with pytest.raises(Unavailable, match="IMAGE_DTYPE"):
        colours_alone.check_name()
    member.leave()
    # Web processes that start while no model server lives; a size set by hand is for those that tell nothing.
    assert ServedNow(queue).input_shape() == (224, 224, 1)
    assert ServedNow(queue, (224, 224)).input_shape() == (224, 224, 1)
    assert ServedNow(queue, (64, 48)).input_shape() == (48, 64, 3)
    join(RESNET)
    colours_alone.look()
    colours_alone.check_name()


def test_a_grey_model_that_has_gone_keeps_nobody_from_sending_colours(join: Join, queue: JobQueue) -> None:
    """The next model server, such as the tutorial's, may not tell what it serves."""
    while_it_lived = ServedNow(queue, only_colours=True)
    member = join(replace(RESNET, channels=1))
    wait_for(lambda: while_it_lived.look() or while_it_lived.alive())
    member.leave()
    while_it_lived.look()
    for served in (while_it_lived, ServedNow(queue, only_colours=True)):
        served.check_name()
        assert served.input_shape() == (224, 224, 3)
        with pytest.raises(Unavailable, match="IMAGE_DTYPE"):  # asked for by its name
            served.check_channels(replace(RESNET, channels=1))


def test_web_processes_of_earlier_releases_hear_of_answers_alone(join: Join, raw: redis.Redis) -> None:
    """They would take what travels beside an answer for an answer, and have Redis delete it by its name."""
    earlier = raw.pubsub(ignore_subscribe_messages=True)
    earlier.subscribe("{image_queue}:answered:earlier")
    wait_for(lambda: earlier.get_message(timeout=0.1) or earlier.subscribed)
    member, job = join(RESNET), new_job(reply_to="{image_queue}:answered:earlier")
    raw.rpush("image_queue", job.to_text())
    answer_one(member)
    message = wait_for(lambda: earlier.get_message(timeout=0.1))
    assert json.loads(message["data"]) == {job.id: '["yes"]'}
    earlier.close()


def test_what_a_newer_release_publishes_is_read_and_garbage_is_not() -> None:
    assert Served.from_text(json.dumps(json.loads(RESNET.to_text()) | {"new": 1})) == RESNET
    for garbage in ("", "[]", "7", '{"name": "x"}', RESNET.to_text().replace("224", '"wide"'), "\ud800"):
        assert Served.from_text(garbage) is None


def test_what_travels_beside_an_answer_tells_who_gave_it() -> None:
    told = {"model": "ResNet50", "version": "0123456789ab", "precision": "float32", "labels_digest": "6d7be65dd77f"}
    assert replace(RESNET, labels_digest="6d7be65dd77f").about() == told
    assert replace(RESNET, labels_digest="6d7be65dd77f", top=3, warning="Of random weights.").about() == told | {
        "top": 3,
        "warning": "Of random weights.",
    }


def test_two_model_servers_have_one_identity_if_the_same_job_gets_the_same_answer_from_both() -> None:
    for same in ({"runtime": "keras"}, {"warning": "They mean nothing."}):
        assert replace(RESNET, **same).identity() == RESNET.identity()
    for other in ({"version": "1"}, {"precision": "bfloat16"}, {"top": 3}, {"labels_digest": "0"}, {"name": "x"}):
        assert replace(RESNET, **other).identity() != RESNET.identity()


def test_what_is_published_lasts_as_long_as_somebody_serves_it(join: Join, queue: JobQueue, raw: redis.Redis) -> None:
    member = join(RESNET)
    published = [queue.keys.serves, queue.keys.served_last, queue.keys.labels(RESNET.labels_digest)]
    assert json.loads(raw.get(published[2])) == ["cat", "dog"]
    for key in published:
        raw.expire(key, 5)
    member._published_at = -math.inf  # a while ago
    member.return_expired()
    assert all(KEEP_SERVED_SECONDS - 5 < raw.ttl(key) <= KEEP_SERVED_SECONDS for key in published)
    raw.delete(*published)  # by a Redis that is out of memory, and may throw away what has a lifetime
    member._published_at = -math.inf
    member.return_expired()
    assert json.loads(raw.hget(published[0], member.name)) == json.loads(RESNET.to_text())
    assert raw.exists(*published) == 3
    raw.zadd(queue.keys.leases, {member.name: queue.now() - 1})
    raw.delete(*published)
    publish(queue, member.name, RESNET, ["cat", "dog"])
    assert raw.exists(*published) == 0  # nobody who may be dead


def answer_one(member: Membership) -> None:
    (text,) = wait_for(lambda: member.take(1).jobs)
    job = Job.from_text(text)
    member.answer([Outcome(text, job.id, job.reply_to, answer='["yes"]')])


@pytest.mark.parametrize("channel", ["reply_to", None], ids=["by the message", "by the key"])
def test_a_warning_travels_beside_the_answer(
    join: Join, queue: JobQueue, raw: redis.Redis, channel: str | None
) -> None:
    side = new_web_side(queue)
    wait_for(lambda: raw.pubsub_channels("{image_queue}:answered:*"))
    member = join(replace(RESNET, warning="They mean nothing."))
    job = new_job(reply_to=side.channel if channel else None)
    with side.submit(job) as ticket:
        answer_one(member)
        about = RESNET.about() | {"warning": "They mean nothing."}
        assert ticket.wait(time.monotonic() + 5) == Answer('["yes"]', about)


def test_without_a_warning_no_key_is_spent_on_it(join: Join, queue: JobQueue, raw: redis.Redis) -> None:
    side, member = new_web_side(queue, poll_seconds=60), join(RESNET)
    job = new_job(reply_to=side.channel)
    wait_for(lambda: raw.pubsub_channels("{image_queue}:answered:*"))
    with side.submit(job) as ticket:
        answer_one(member)
        assert ticket.wait(time.monotonic() + 5) == Answer('["yes"]', RESNET.about())
    assert raw.keys("{image_queue}:about:*") == []
