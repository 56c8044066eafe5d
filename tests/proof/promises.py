"""Lists the rows of the proof's table: each promise, how it is tried, and how many cases are needed at least."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One row: a promise, a way to try it, and how many cases there are at least."""

    promise: str
    tried: str
    least: int


OFF = "1 Off is off"
ANONYMOUS = "2 On is anonymous"
UNLINKABLE = "3 Starts are unlinkable"
DOCUMENTED = "4 Only the documented leaves"
HOSTILE = "5 Hostile input is rejected"
FAULTS = "6 tbot never waits long or fails"
ATTACKERS = "7 Local attackers get nothing"
SUPPLY = "8 The installed package is the source"

TRIALS = {
    "off.calls": Trial(promise=OFF, tried="system call trace, one process a case", least=150),
    "off.audit": Trial(promise=OFF, tried="audit hook, one process a case", least=150),
    "off.exceptions": Trial(promise=OFF, tried="the listed exceptions, and no others", least=5),
    "off.later": Trial(promise=OFF, tried="turned off, or on, after the start", least=12),
    "off.no-relay": Trial(promise=OFF, tried="no relay can start: addresses connected to", least=10),
    "anonymous.canaries": Trial(
        promise=ANONYMOUS, tried="canaries in every name of the host, searched on the wire", least=28
    ),
    "anonymous.numbers": Trial(promise=ANONYMOUS, tried="numbers in every field of reports and records", least=100),
    "anonymous.exceptions": Trial(
        promise=ANONYMOUS, tried="each text that is meant to leave, only in its own place", least=8
    ),
    "anonymous.same": Trial(promise=ANONYMOUS, tried="two hosts with different names: equal bytes", least=12),
    "anonymous.output": Trial(promise=ANONYMOUS, tried="canaries searched in stderr and log", least=28),
    "anonymous.secrets": Trial(
        promise=ANONYMOUS, tried="keys and tokens in every setting, searched in all output", least=250
    ),
    "unlinkable.ids": Trial(promise=UNLINKABLE, tried="starts in a row by emit: ids and connections", least=10_000),
    "unlinkable.carried": Trial(
        promise=UNLINKABLE, tried="cookies, ETags, TLS tickets offered to each start", least=300
    ),
    "unlinkable.disk": Trial(promise=UNLINKABLE, tried="starts as processes, files compared", least=40),
    "documented.wire": Trial(promise=DOCUMENTED, tried="generated events, decoded from the wire", least=8_000),
    "documented.transport": Trial(
        promise=DOCUMENTED, tried="headers and connections of OpenTelemetry's exporter behind the plug-in", least=8
    ),
    "hostile.messages": Trial(promise=HOSTILE, tried="generated and mutated requests as messages", least=80_000),
    "hostile.bridge": Trial(promise=HOSTILE, tried="mutated bytes over TCP to the bridge", least=15_000),
    "hostile.pressure": Trial(
        promise=HOSTILE, tried="connections to the bridge that pipeline, do not read, or stall", least=300
    ),
    "hostile.relay": Trial(promise=HOSTILE, tried="mutated bytes over TCP to the relay", least=5_000),
    "hostile.files": Trial(promise=HOSTILE, tried="hostile tbot.yaml files", least=10_000),
    "hostile.settings": Trial(promise=HOSTILE, tried="hostile settings", least=10_000),
    "hostile.connect": Trial(promise=HOSTILE, tried="the Connect protocol's rules for unary errors", least=30),
    "faults.one-shot": Trial(
        promise=FAULTS, tried="one-shot with a faulty collector: status, output, time, outcome", least=25
    ),
    "faults.slow": Trial(promise=FAULTS, tried="one-shot with a stopped or slow relay: time, outcome", least=10),
    "faults.path": Trial(promise=FAULTS, tried="launchers with another sys.path, and broken packages", least=20),
    "faults.certificates": Trial(promise=FAULTS, tried="certificates that are replaced on disk", least=8),
    "faults.daemon": Trial(promise=FAULTS, tried="daemon with a collector that hangs", least=5),
    "faults.emit": Trial(promise=FAULTS, tried="a call of emit with a faulty collector: time, outcome", least=20),
    "attackers.secret": Trial(promise=ATTACKERS, tried="reports without the secret path", least=1_000),
    "attackers.hold": Trial(promise=ATTACKERS, tried="connections that stay open", least=3),
    "attackers.twice": Trial(promise=ATTACKERS, tried="second reports during and after the first", least=3),
    "attackers.sight": Trial(promise=ATTACKERS, tried="what other processes and users can read", least=5),
    "supply.installed": Trial(promise=SUPPLY, tried="the tested package is the installed wheel", least=3),
    "supply.wheel": Trial(promise=SUPPLY, tried="two builds in two places: same bytes", least=1),
    "supply.import": Trial(promise=SUPPLY, tried="imports under a system call trace", least=25),
    "supply.licences": Trial(promise=SUPPLY, tried="licences of all dependencies", least=20),
}
