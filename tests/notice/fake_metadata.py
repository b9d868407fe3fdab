#!/usr/bin/env python3
"""The metadata services of AWS (IMDSv2), Azure and Google Cloud as a local server, for tests and for trying things out.

usage: fake_metadata.py [--port N] [--log FILE] STATE_FOLDER

Listens on 127.0.0.1 only, and prints its port. What it says lies in files of STATE_FOLDER, which are read at each request:

  action         AWS: seconds from the file's time until the instance is terminated     (not there: 404)
  rebalance      AWS: anything: a rebalance recommendation at the file's time           (not there: 404)
  events         Azure: seconds from the file's time until Preempt of this machine      (not there: no events)
  events.json    Azure: the answer itself, instead
  preempted      Google Cloud: anything: instance/preempted is TRUE
  maintenance    Google Cloud: the value of instance/maintenance-event                  (not there: NONE)
  acknowledged   written here: what was POSTed to Azure's events
  misbehave      how every answer goes wrong: "500", "404", "redirect", "garbage", "empty", "slow" (no answer for 30 s), "huge" (an endless
                 body), "drip" (a byte each 0.2 s), "close" (no answer at all), "noflavor" (without Metadata-Flavor)
  expire         anything: the AWS token is no longer good (taken away once a request has been refused)

As the real ones do, AWS wants a token that was asked for by PUT, Azure the header Metadata and the version, Google Cloud the header Metadata-Flavor; and all
refuse a request that came through a proxy. --log: a line for each request: method, path, status."""
import argparse
import http.server
import json
import os
import secrets
import sys
import threading
import time
from email.utils import formatdate

VM = "fake-vm_1"


class State:
    def __init__(self, folder):
        self.folder = folder
        self.tokens = set()
        self.lock = threading.Lock()

    def path(self, name):
        return os.path.join(self.folder, name)

    def read(self, name):
        """Its text, and when it was written; None where there is none."""
        try:
            with open(self.path(name)) as f:
                return f.read().strip(), os.stat(self.path(name)).st_mtime
        except FileNotFoundError:
            return None


def iso(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body="", headers=()):
        data = body.encode()
        self.note(status)
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def note(self, status):
        if self.server.log:
            with self.server.state.lock:
                self.server.log.write(f"{self.command} {self.path} {status}\n")
                self.server.log.flush()

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()

    def misbehave(self, how):
        flavor = [("Metadata-Flavor", "Google")]
        if how in ("500", "404"):
            self.answer(int(how), "<html>no</html>", flavor)
        elif how == "redirect":
            self.answer(302, "", [("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")])
        elif how == "garbage":
            self.answer(200, '{"action": "terminate", "time": "soon"', flavor)
        elif how == "empty":
            self.answer(200, "", flavor)
        elif how == "close":
            self.note("closed")
            self.close_connection = True
        else:
            self.note(how)
            self.send_response(200)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Length", str(1 << 40))
            self.close_connection = True
            try:
                if how == "slow":
                    self.server.ended.wait(30)
                self.end_headers()
                while not self.server.ended.is_set():
                    self.wfile.write(b"x" * (1 if how == "drip" else 65536))
                    if how == "drip":
                        self.server.ended.wait(0.2)
            except OSError:
                pass

    def handle_any(self):
        state = self.server.state
        text = self.body()
        wrong = state.read("misbehave")
        path = self.path.split("?")[0]
        query = dict(p.partition("=")[::2] for p in self.path.partition("?")[2].split("&"))
        if wrong and wrong[0] != "noflavor":
            return self.misbehave(wrong[0])
        if "Via" in self.headers or "X-Forwarded-For" in self.headers or self.path.startswith("http"):
            return self.answer(403)
        if path.startswith("/latest/"):
            return self.aws(path)
        if path.startswith("/metadata/"):
            return self.azure(path, query, text)
        if path.startswith("/computeMetadata/"):
            return self.gcp(path, query, not wrong)
        return self.answer(404)

    do_GET = do_PUT = do_POST = handle_any

    def aws(self, path):
        state = self.server.state
        if path == "/latest/api/token":
            lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if self.command != "PUT" or not lifetime.isdigit() or not 1 <= int(lifetime) <= 21600:
                return self.answer(400)
            token = secrets.token_urlsafe(40)
            state.tokens.add(token)
            return self.answer(200, token)
        if state.read("expire"):
            state.tokens.clear()
            os.unlink(state.path("expire"))
        if self.headers.get("X-aws-ec2-metadata-token") not in state.tokens:
            return self.answer(401)
        action, rebalance = state.read("action"), state.read("rebalance")
        if path == "/latest/meta-data/spot/instance-action" and action:
            return self.answer(200, json.dumps({"action": "terminate", "time": iso(action[1] + float(action[0]))}))
        if path == "/latest/meta-data/events/recommendations/rebalance" and rebalance:
            return self.answer(200, json.dumps({"noticeTime": iso(rebalance[1])}))
        return self.answer(404, "<html>Not Found</html>")

    def azure(self, path, query, text):
        state = self.server.state
        if self.headers.get("Metadata") != "true" or not query.get("api-version"):
            return self.answer(400)
        if path == "/metadata/instance/compute/name":
            return self.answer(200, VM)
        if path != "/metadata/scheduledevents":
            return self.answer(404)
        if self.command == "POST":
            with open(state.path("acknowledged"), "a") as f:
                f.write(text + "\n")
            return self.answer(200)
        whole, preempt = state.read("events.json"), state.read("events")
        if whole:
            return self.answer(200, whole[0])
        events = []
        if preempt:
            events.append({
                "EventId": "A123BC45-1234-5678-AB90-ABCDEF123456", "EventStatus": "Scheduled", "EventType": "Preempt",
                "ResourceType": "VirtualMachine", "Resources": ["other", VM],
                "NotBefore": formatdate(preempt[1] + float(preempt[0]), usegmt=True), "Description": "",
                "EventSource": "Platform", "DurationInSeconds": -1})
        return self.answer(200, json.dumps({"DocumentIncarnation": 1, "Events": events}))

    def gcp(self, path, query, flavor):
        state = self.server.state
        if self.headers.get("Metadata-Flavor") != "Google":
            return self.answer(403)

        def value():
            if path.endswith("/preempted"):
                return "TRUE" if state.read("preempted") else "FALSE"
            kept = state.read("maintenance")
            return kept[0] if kept else "NONE"

        if path not in ("/computeMetadata/v1/instance/preempted", "/computeMetadata/v1/instance/maintenance-event"):
            return self.answer(404)
        until = time.monotonic() + float(query.get("timeout_sec", 300))
        while query.get("wait_for_change") == "true" and time.monotonic() < until and not self.server.ended.is_set():
            if query.get("last_etag", "") != "etag" + value():
                break
            time.sleep(0.05)
        now = value()
        headers = [("ETag", "etag" + now)] + ([("Metadata-Flavor", "Google")] if flavor else [])
        return self.answer(200, now, headers)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # whoever asked has gone


def main():
    parser = argparse.ArgumentParser(description="a local server that speaks like the metadata services of clouds")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log")
    parser.add_argument("folder")
    arguments = parser.parse_args()
    server = Server(("127.0.0.1", arguments.port), Handler)
    server.state = State(arguments.folder)
    server.ended = threading.Event()
    server.log = open(arguments.log, "a") if arguments.log else None
    print(server.server_port, flush=True)
    try:
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        server.ended.set()


if __name__ == "__main__":
    sys.exit(main())
