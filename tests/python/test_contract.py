#!/usr/bin/env python3
"""A client of Longshore that knows nothing but `schemas/`.

`Examples` needs no service. `Live` publishes jobs to a running worker and fails, rather than being left out, where one
of these is missing from the environment:

  LONGSHORE_CONTRACT_AMQP_URI       the broker; without it LONGSHORE_LAB_AMQP_URI
  LONGSHORE_CONTRACT_HOST           host id of the worker
  LONGSHORE_CONTRACT_INSTANCE       name of an instance on that host
  LONGSHORE_CONTRACT_REPOSITORY_ID  and _ADDRESS: a directory repository that the host has

Run it with unittest, or as it is (`test_contract.py [Examples]`): then the last line is `N passed, N failed`.
"""

import copy
import json
import os
import sys
import time
import unittest
import uuid
from pathlib import Path

import jsonschema
import msgpack
import pika

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
ASYNCAPI = json.loads((SCHEMAS / "asyncapi.json").read_text())
MSGPACK, JSON = "application/vnd.msgpack", "application/json"
RUN_DEADLINE_SECONDS = 300
REFUSAL_DEADLINE_SECONDS = 30


def pack(content_type, value):
    return json.dumps(value).encode() if content_type == JSON else msgpack.packb(value)


def unpack(content_type, body):
    return json.loads(body) if content_type == JSON else msgpack.unpackb(body, max_map_len=10_000)


def message(message_type):
    return ASYNCAPI["components"]["messages"][message_type.replace(".", "_")]


def validator(schema):
    checker = jsonschema.Draft202012Validator
    checker.check_schema(schema)
    return checker(schema, format_checker=checker.FORMAT_CHECKER)


def schema_of(message_type):
    return json.loads((SCHEMAS / message(message_type)["payload"]["schema"]["$ref"]).read_text())


def exchange(channel):
    return ASYNCAPI["channels"][channel]["bindings"]["amqp"]["exchange"]["name"]


class Examples(unittest.TestCase):
    def setUp(self):
        self.types = [each["name"] for each in ASYNCAPI["components"]["messages"].values()]
        self.assertGreater(len(self.types), 10)

    def example(self, message_type, content_type):
        ending = {JSON: "json", MSGPACK: "msgpack"}[content_type]
        return unpack(content_type, (SCHEMAS / "examples" / f"{message_type}.{ending}").read_bytes())

    def test_every_example_fits_its_schema_in_both_encodings(self):
        for message_type in self.types:
            for content_type in (JSON, MSGPACK):
                with self.subTest(message_type=message_type, content_type=content_type):
                    validator(schema_of(message_type)).validate(self.example(message_type, content_type))

    def test_both_encodings_of_an_example_say_the_same(self):
        for message_type in self.types:
            with self.subTest(message_type=message_type):
                self.assertEqual(self.example(message_type, JSON), self.example(message_type, MSGPACK))

    def test_the_schema_of_a_job_refuses_what_a_worker_refuses(self):
        check = validator(schema_of("longshore.job.v1"))
        good = self.example("longshore.job.v1", JSON)
        for path, value in [
            (["run"], 0), (["run"], "1"), (["host"], "kvm.07"), (["kind"], "restore"), (["job_id"], "7"), (["backup"], None),
            (["instance"], {}), (["instance"], ["name", "web-1"]), (["repository", "type"], "ftp"),
            (["repository", "credentials"], {"reference": "../shadow"}), (["backup", "transfer"], "pushy"),
            (["backup", "exclude_disks"], ["../vda"]), (["retry", "attempts"], 0), (["deadline_seconds"], 0),
        ]:
            with self.subTest(path=path, value=value):
                bad = copy.deepcopy(good)
                place = bad
                for name in path[:-1]:
                    place = place[name]
                place[path[-1]] = value
                self.assertFalse(check.is_valid(bad))
        for field in ("job_id", "run", "kind", "host", "instance", "repository", "backup"):
            with self.subTest(missing=field):
                self.assertFalse(check.is_valid({name: value for name, value in good.items() if name != field}))


class Live(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        def need(name, instead=None):
            value = os.environ.get(f"LONGSHORE_CONTRACT_{name}") or (instead and os.environ.get(instead))
            if not value:
                raise AssertionError(f"LONGSHORE_CONTRACT_{name} is not set; the live part needs a running worker")
            return value

        cls.uri = need("AMQP_URI", "LONGSHORE_LAB_AMQP_URI")
        cls.host = need("HOST")
        cls.instance = need("INSTANCE")
        cls.repository = {"id": need("REPOSITORY_ID"), "type": "directory", "address": need("ADDRESS")}

    def setUp(self):
        self.connection = pika.BlockingConnection(pika.URLParameters(self.uri))
        self.addCleanup(self.connection.close)
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.events = self.listen(exchange("runEvents"))
        self.letters = self.listen(exchange("deadLetters"))

    def listen(self, source):
        queue = self.channel.queue_declare("", exclusive=True).method.queue
        self.channel.queue_bind(queue, source, f"*.*.{self.host}")
        return queue

    def job(self, **changed):
        job = {
            "job_id": str(uuid.uuid4()), "run": 1, "kind": "backup", "host": self.host,
            "instance": {"name": self.instance}, "repository": self.repository, "backup": {"quiesce": "off"},
            "retry": {"attempts": 1}, "labels": {"asked_by": "contract"}, "requested_by": "test_contract.py",
        }
        job.update(changed)
        return job

    def publish(self, job, content_type, host=None):
        properties = pika.BasicProperties(
            content_type=content_type, type="longshore.job.v1", message_id=job["job_id"], correlation_id=job["job_id"],
            app_id="test_contract", timestamp=int(time.time()), delivery_mode=2,
        )
        body = pack(content_type, job)
        self.channel.basic_publish(exchange("jobs"), host or self.host, body, properties, mandatory=True)

    def messages(self, queue, deadline_seconds):
        """Each message of the queue, checked against the contract of its type, until the deadline."""
        ends = time.monotonic() + deadline_seconds
        for method, properties, body in self.channel.consume(queue, auto_ack=True, inactivity_timeout=0.5):
            if method is not None:
                yield method.routing_key, properties, self.checked(properties, body), body
            if time.monotonic() > ends:
                self.fail(f"nothing more came within {deadline_seconds} s")

    def checked(self, properties, body):
        self.assertIn(properties.content_type, (JSON, MSGPACK))
        value = unpack(properties.content_type, body)
        described = message(properties.type)
        validator(schema_of(properties.type)).validate(value)
        validator(described["headers"]).validate(properties.headers or {})
        self.assertTrue(properties.message_id)
        self.assertTrue(properties.app_id.startswith("longshore/"))
        if properties.type.startswith("longshore.event."):
            headers = properties.headers
            self.assertEqual(headers["cloudEvents_id"], properties.message_id)
            self.assertEqual(headers["cloudEvents_time"], value["time"])
            self.assertEqual(headers["cloudEvents_source"], f"/longshore/hosts/{value['host']}")
        return value

    def run_events(self, job_id):
        """The events of a run up to its final one, duplicates left out."""
        seen, run = set(), []
        for key, properties, event, _ in self.messages(self.events, RUN_DEADLINE_SECONDS):
            if properties.correlation_id != job_id or properties.message_id in seen:
                continue
            seen.add(properties.message_id)
            word = properties.type.removeprefix("longshore.event.").removesuffix(".v1")
            self.assertEqual(key, f"backup.{word}.{self.host}")
            run.append((word, properties, event))
            if word in ("completed", "failed", "cancelled"):
                return run

    def backs_up(self, content_type):
        job = self.job()
        self.publish(job, content_type)
        run = self.run_events(job["job_id"])
        words = [word for word, _, _ in run]
        last = run[-1][2]
        self.assertEqual(words[-1], "completed", json.dumps(last))
        self.assertEqual(words[:2], ["accepted", "started"])
        self.assertEqual(words.count("started"), 1)
        self.assertIn("progress", words)
        places = [(event["run"], event["attempt"], event["sequence"]) for _, _, event in run]
        self.assertEqual(places, sorted(set(places)), "in order and without a double")
        for _, properties, event in run:
            self.assertEqual(properties.content_type, content_type)
            self.assertEqual((event["job_id"], event["run"]), (job["job_id"], 1))
            self.assertEqual((event["instance"], event["labels"]), (job["instance"], job["labels"]))
        self.assertEqual(last["detail"]["backup"]["verification"], "compared")

    def test_a_job_in_messagepack_becomes_a_backup(self):
        self.backs_up(MSGPACK)

    def test_a_job_in_json_becomes_a_backup(self):
        self.backs_up(JSON)

    def test_a_job_for_an_unknown_host_comes_back(self):
        unknown = f"nobody-{uuid.uuid4().hex[:8]}"
        with self.assertRaises(pika.exceptions.UnroutableError):
            self.publish(self.job(host=unknown), MSGPACK, unknown)

    def is_refused(self, job, code):
        self.publish(job, JSON)
        for _, properties, event, _ in self.messages(self.events, REFUSAL_DEADLINE_SECONDS):
            refused = properties.type == "longshore.event.message.refused.v1"
            if refused and event["detail"]["message_id"] == job["job_id"]:
                self.assertEqual(event["detail"]["code"], code)
                break
        self.channel.cancel()
        for key, _, letter, body in self.messages(self.letters, REFUSAL_DEADLINE_SECONDS):
            if letter["original"]["message_id"] == job["job_id"]:
                self.assertEqual(key.split(".")[1:], [code, self.host])
                self.assertEqual(letter["failure"]["code"], code)
                return body

    def test_an_unknown_kind_becomes_a_refusal_and_a_letter(self):
        self.is_refused(self.job(kind="teleport"), "unknown_kind")

    def test_a_secret_in_the_options_becomes_a_letter_without_it(self):
        repository = dict(self.repository, options="vers=3.0,password=hunter2,more")
        letter = self.is_refused(self.job(repository=repository), "secret_in_options")
        self.assertNotIn(b"hunter2", letter)


def main():
    wanted = sys.argv[1:]
    loader = unittest.defaultTestLoader
    module = sys.modules[__name__]
    suite = loader.loadTestsFromNames(wanted, module) if wanted else loader.loadTestsFromModule(module)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.skipped)
    print(f"{max(result.testsRun - failed, 0)} passed, {failed} failed")
    return 0 if failed == 0 and result.testsRun > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
