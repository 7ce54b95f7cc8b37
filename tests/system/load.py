"""Clients that stream without end, so that whatever happens to the engine happens under load however fast it is."""
import http.client
import json
import threading
import time

LOST = None  # the connection broke


class Load:
    """A thread per prompt asks for `tokens` greedy tokens again and again, from enter to exit.

    `answers` has (prompt's index, status, ids) of each request that ended; a broken one has status LOST, or the code of
    the error event that ended it."""

    def __init__(self, engine, prompts, tokens, seconds=60):
        self.engine, self.prompts, self.tokens, self.seconds = engine, prompts, tokens, seconds
        self.answers = []
        self.seen = 0  # tokens, of all clients
        self.changed = threading.Condition()
        self.stopping = False
        self.threads = [threading.Thread(target=self.client, args=(i,)) for i in range(len(prompts))]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *unused):
        self.stopping = True
        for thread in self.threads:
            thread.join()

    def wait_tokens(self, count):
        """Until the clients have seen `count` tokens more."""
        with self.changed:
            target = self.seen + count
            assert self.changed.wait_for(lambda: self.seen >= target, self.seconds), (self.seen, target, self.answers[-8:])

    def wait_answers(self, count):
        """Until `count` requests more are answered in full."""
        with self.changed:
            whole = lambda: sum(status == 200 for _, status, _ in self.answers)  # noqa: E731
            target = whole() + count
            assert self.changed.wait_for(lambda: whole() >= target, self.seconds), (whole(), target, self.answers[-8:])

    def client(self, index):
        while not self.stopping:
            ids = []
            try:
                status = self.request(index, ids)
            except (OSError, http.client.HTTPException):
                status = LOST
            with self.changed:
                self.answers.append((index, status, ids))
                self.changed.notify_all()
            if status != 200:
                time.sleep(0.01)  # a service that is down is asked again, not flooded

    def request(self, index, ids):
        connection = http.client.HTTPConnection("127.0.0.1", self.engine.port, timeout=self.seconds)
        body = {"prompt": self.prompts[index], "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True,
                "stream": True, "return_token_ids": True}
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            if reply.status != 200:
                return reply.status
            for line in reply:
                if line.startswith(b"data: [DONE]"):
                    return 200
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return event["error"]["code"]
                    self.take(event, ids)
            return LOST
        finally:
            connection.close()

    def take(self, event, ids):
        for choice in event["choices"]:
            new = choice.get("token_ids") or []
            ids += new
            with self.changed:
                self.seen += len(new)
                self.changed.notify_all()
