"""The table that the proof fills: each promise, how it is tried, and the least number of cases that is a trial."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One row: a promise, a way of trying it, and how many cases there are at least."""

    promise: str
    tried: str
    least: int


OFF = "1 Off is off"
ANONYMOUS = "2 On is anonymous"
UNLINKABLE = "3 Starts are unlinkable"
DOCUMENTED = "4 Only the documented leaves"
HOSTILE = "5 Hostile input is refused"
FAULTS = "6 tbot never waits or fails"
ATTACKERS = "7 Local attackers get nothing"
SUPPLY = "8 What is installed is what is said"

TRIALS = {
    "off.calls": Trial(promise=OFF, tried="system call trace, one child a case", least=150),
    "off.audit": Trial(promise=OFF, tried="audit hook, one child a case", least=150),
    "off.exceptions": Trial(promise=OFF, tried="each listed exception, and no more", least=5),
    "off.later": Trial(promise=OFF, tried="turned off, or on, after the start", least=12),
    "off.no-relay": Trial(promise=OFF, tried="no relay to be had: addresses connected to", least=10),
    "anonymous.canaries": Trial(
        promise=ANONYMOUS, tried="canaries in all that names a host, searched on the wire", least=28
    ),
    "anonymous.exceptions": Trial(
        promise=ANONYMOUS, tried="each text that is meant to travel, in its place only", least=8
    ),
    "anonymous.same": Trial(promise=ANONYMOUS, tried="two hosts that differ in all: equal bytes", least=12),
    "anonymous.output": Trial(promise=ANONYMOUS, tried="canaries searched in stderr and log", least=28),
    "unlinkable.ids": Trial(promise=UNLINKABLE, tried="starts in a row, ids and connections compared", least=10_000),
    "unlinkable.carried": Trial(
        promise=UNLINKABLE, tried="cookies, ETags, TLS tickets offered to each start", least=300
    ),
    "unlinkable.disk": Trial(promise=UNLINKABLE, tried="starts as processes, files compared", least=40),
    "documented.wire": Trial(promise=DOCUMENTED, tried="generated events, decoded from the wire", least=8_000),
    "hostile.messages": Trial(promise=HOSTILE, tried="generated and mutated requests, message level", least=80_000),
    "hostile.bridge": Trial(promise=HOSTILE, tried="mutated bytes over TCP to the bridge", least=15_000),
    "hostile.relay": Trial(promise=HOSTILE, tried="mutated bytes over TCP to the relay", least=5_000),
    "hostile.files": Trial(promise=HOSTILE, tried="hostile tbot.yaml files", least=10_000),
    "hostile.settings": Trial(promise=HOSTILE, tried="hostile settings", least=10_000),
    "hostile.connect": Trial(promise=HOSTILE, tried="the Connect protocol's rules for unary errors", least=30),
    "faults.one-shot": Trial(promise=FAULTS, tried="one-shot beside a fault: status, output, time, outcome", least=25),
    "faults.daemon": Trial(promise=FAULTS, tried="daemon beside a fault that hangs", least=5),
    "faults.emit": Trial(promise=FAULTS, tried="a call of emit beside a fault: time, outcome", least=20),
    "attackers.secret": Trial(promise=ATTACKERS, tried="reports without the secret path", least=1_000),
    "attackers.hold": Trial(promise=ATTACKERS, tried="connections that stay", least=3),
    "attackers.twice": Trial(promise=ATTACKERS, tried="reports beside and after the one", least=3),
    "attackers.sight": Trial(promise=ATTACKERS, tried="what other processes and users can read", least=5),
    "supply.installed": Trial(promise=SUPPLY, tried="the package under proof is the installed wheel", least=3),
    "supply.wheel": Trial(promise=SUPPLY, tried="two builds in two places: same bytes", least=1),
    "supply.import": Trial(promise=SUPPLY, tried="imports under a system call trace", least=25),
    "supply.licences": Trial(promise=SUPPLY, tried="licences of all dependencies", least=20),
}
