import base64
import json
import re
import shutil
import ssl
import sys
from pathlib import Path

import grpc
import pytest
import requests
import trustme
import yaml

from otel_tbot import Outcome, __version__
from tests.bridge.test_bridge import post
from tests.repository.test_kubernetes_pages import read_values_of_pages, run
from tests.support.bridge_process import BridgeProcess
from tests.support.chart import VALUE_SETS, ChartCollector, Release, read_bridge, read_container
from tests.support.checkout import ROOT
from tests.support.polling import poll_until
from tests.support.servers import OtlpGrpcServer, OtlpHttpServer
from tools import chart
from tools.pages import Page

BIN = Path(sys.executable).parent
ALERTS = chart.CHART / "files" / "alerts.yaml"
OPERATOR_KINDS = {"ServiceMonitor", "PrometheusRule"}
SWITCHES_ON_BY_DEFAULT = {"collector.enabled", "networkPolicy.enabled", "podDisruptionBudget.enabled"}
IDENTITY = "host-71c4"


pytestmark = [pytest.mark.backends, pytest.mark.usefixtures("helm", "promtool")]


def read_set(name):
    """The values of a set, as one mapping of dotted names for what values.yaml documents."""
    values = yaml.safe_load((chart.CHART / "ci" / f"{name}-values.yaml").read_text())
    found = {}
    for key, _, _ in chart.read_values():
        try:
            found[key] = chart.get_value(values, key)
        except (KeyError, TypeError):
            continue
    return found


# The chart as a whole.


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_helm_lints_every_value_set(value_set, helm):
    """Strictly: no error and no warning."""
    values = chart.CHART / "ci" / f"{value_set}-values.yaml"
    finished = run(helm, "lint", "--strict", "--values", values, chart.CHART)

    assert 0 == finished.returncode, finished.stdout
    assert "WARNING" not in finished.stdout


def test_one_value_set_sets_every_value():
    """Each documented value has another value than the default there, except switches that are on by default."""
    defaults = {name: json.loads(default) for name, default, _ in chart.read_values()}
    everything = read_set("everything")

    assert sorted(defaults) == sorted(everything)
    assert {name for name in defaults if defaults[name] == everything[name]} == SWITCHES_ON_BY_DEFAULT
    assert not any(read_set("direct")[name] for name in SWITCHES_ON_BY_DEFAULT)


# Each of these has no effect while the other value is set.
OVERRIDDEN = {
    "image.tag": "image.digest",
    "collector.image.tag": "collector.image.digest",
    "bridge.replicas": "autoscaling.enabled",
}


def set_value(values, name, value):
    """Sets the value that the dotted *name* leads to."""
    *parents, key = name.split(".")
    for parent in parents:
        values = values[parent]
    values[key] = value


@pytest.mark.parametrize("name", [name for name, _, _ in chart.read_values() if name not in SWITCHES_ON_BY_DEFAULT])
def test_every_value_has_an_effect(name, tmp_path):
    """What Helm renders differs if only this value has its default again."""
    defaults = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    values = yaml.safe_load((chart.CHART / "ci" / "everything-values.yaml").read_text())
    rendered = []
    for reset in ((), (name,)):
        for other in (*reset, *([OVERRIDDEN[name]] if name in OVERRIDDEN else [])):
            set_value(values, other, chart.get_value(defaults, other))
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        finished = chart.render("--values", str(tmp_path / "values.yaml"))
        assert 0 == finished.returncode, finished.stderr
        rendered.append(finished.stdout)

    assert rendered[0] != rendered[1]


@pytest.mark.parametrize(
    "value",
    [
        "bridge.replica=2",
        "collectors.enabled=false",
        "image.tag=latest",
        "collector.image.tag=latest",
        "collector.image.tag=",
        "image.digest=sha256:12",
        "signal=logs",
        "destination.protocol=http",
        "destination.endpoint=collector:4317",
        "bridge.listen=8080",
        "bridge.listen=127.0.0.1:8080",
        "bridge.listen=[::1]:8080",
        "bridge.listen=0.0.0.0:65536",
        "serviceMonitor.interval=30",
        "serviceMonitor.interval=30 s",
        "serviceMonitor.interval=",
        "service.port=http",
        "networkPolicy.reporterLabels=null",
        "nameOverride=" + "a" * 64,
        "fullnameOverride=otel.tbot",
        "image.repository=registry.example/otel-tbot:1.2.3",
        "destination.endpoint=https://collector.example/otlp?token=a",
        "destination.endpoint=https://collector.example:otlp",
        "bridge.extraEnv[0].name=A,bridge.extraEnv[0].value=5",
        r"bridge.podLabels.app\.kubernetes\.io/name=a",
        r"serviceMonitor.labels.helm\.sh/chart=a",
    ],
)
def test_a_wrong_value_is_an_error(value):
    """A misspelt name, a floating tag or a value of another form ends Helm with a message that names it."""
    finished = chart.render("--set", value)

    assert 0 != finished.returncode
    assert any(
        f"'{part}" in finished.stderr or f"/{part}" in finished.stderr for part in value.partition("=")[0].split(".")
    )


@pytest.mark.parametrize(
    "value", ["bridge.listen=0.0.0.0:65535", "serviceMonitor.interval=1h", "serviceMonitor.interval=1m30s"]
)
def test_a_value_next_to_a_wrong_one_is_right(value):
    """The schema refuses nothing that the bridge and the Prometheus Operator accept."""
    finished = chart.render("--set", value)

    assert 0 == finished.returncode, finished.stderr


@pytest.mark.parametrize(
    ("release", "values", "remedy"),
    [
        ("my.release", (), "my.release-otel-tbot is not a name for a Service: set fullnameOverride"),
        ("1st", (), "1st-otel-tbot is not a name for a Service: set fullnameOverride"),
        ("tbot", ("autoscaling.enabled=true,autoscaling.minReplicas=9",), "raise maxReplicas too"),
        ("tbot", ("bridge.extraEnv[0].name=OTEL_TBOT_SIGNAL",), "OTEL_TBOT_SIGNAL is the chart's own; use destination"),
        ("tbot", ("collector.extraEnv[0].name=TBOT_QUEUE",), "TBOT_QUEUE is the chart's own; use destination"),
    ],
)
def test_values_that_kubernetes_would_refuse_together_are_an_error(release, values, remedy):
    """What no schema can compare ends Helm with a message that says what to do; next to the limit it renders."""
    finished = [
        run(chart.HELM, "template", name, chart.CHART, *(word for value in given for word in ("--set", value)))
        for name, given in (
            (release, values),
            (release, ("fullnameOverride=starts", *(v.replace("=9", "=8").replace("name=", "name=A") for v in values))),
        )
    ]

    assert [1, 0] == [found.returncode for found in finished]
    assert remedy in finished[0].stderr


@pytest.mark.parametrize("is_enabled", [True, False])
def test_a_chart_can_depend_on_it_with_a_condition(is_enabled, tmp_path):
    """Helm hands the value of the usual condition, `otel-tbot.enabled`, to the chart too."""
    shutil.copytree(chart.CHART, tmp_path / "charts" / "otel-tbot")
    dependency = {"name": "otel-tbot", "version": ">=0.0.0", "condition": "otel-tbot.enabled"}
    parent = {"apiVersion": "v2", "name": "platform", "version": "0.1.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(parent))
    finished = run(
        chart.HELM, "template", "platform", tmp_path, "--set", f"otel-tbot.enabled={str(is_enabled).lower()}"
    )

    assert 0 == finished.returncode, finished.stderr
    assert is_enabled == ("kind: Deployment" in finished.stdout)


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_every_object_is_valid_for_kubernetes(value_set, tmp_path):
    """Strictly, by Kubernetes' own schemas, except what the Prometheus Operator defines. An unknown field fails."""
    release = Release(value_set)
    right, wrong = tmp_path / "right.yaml", tmp_path / "wrong.yaml"
    right.write_text(release.text)
    wrong.write_text(release.text.replace("containerPort:", "containerPorts:"))
    finished = run(BIN / "kubernetes-validate", "--strict", right)

    assert 0 == finished.returncode, finished.stdout
    own = [found for found in release.objects if found["kind"] not in OPERATOR_KINDS]
    assert len(own) == finished.stdout.count(" passed ")
    assert len(release.objects) - len(own) == finished.stdout.count("Couldn't find schema")
    assert 0 != run(BIN / "kubernetes-validate", "--strict", wrong).returncode


def test_the_prometheus_operator_knows_its_objects(operator_check):
    """Strictly, by the operator's own types: every field exists there. A misspelt one fails."""
    objects = [found for found in Release("everything").objects if found["kind"] in OPERATOR_KINDS]
    text = yaml.safe_dump_all(objects)
    finished = run(operator_check, input=text)
    wrong = run(operator_check, input=text.replace("interval:", "intervals:"))

    assert 0 == finished.returncode, finished.stderr
    assert 3 == len(objects) == len(finished.stdout.splitlines())
    assert 0 != wrong.returncode
    assert "intervals" in wrong.stderr


def test_the_manifests_are_what_helm_writes():
    """deploy/kubernetes.yaml is the output for the default values, to the letter: `make chart` writes it."""
    rendered = chart.render("--namespace", "otel-tbot")

    assert chart.MANIFESTS.read_text() == rendered.stdout
    assert Release("default").text == rendered.stdout


def test_the_chart_holds_the_files_of_the_collector_kit():
    """Guard and agent are copies, byte for byte, in the chart and in the ConfigMap."""
    (files,) = Release("default").find("ConfigMap")

    for copy, source in chart.COPIES.items():
        assert source.read_bytes() == copy.read_bytes()
        assert source.read_text().strip() == files["data"][source.name].strip()


# Single objects.


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_every_pod_fits_the_restricted_profiles(value_set):
    """As the restricted Pod Security Standard says, and without a user id, which OpenShift would refuse."""
    for pod in Release(value_set).pods():
        (container,) = pod["spec"]["containers"]

        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert set(pod["spec"].get("securityContext", {})) <= {"fsGroup", "fsGroupChangePolicy"}
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
        assert {next(kind for kind in volume if kind != "name") for volume in pod["spec"].get("volumes", [])} <= {
            "configMap",
            "secret",
        }


def test_openshift_chooses_the_group():
    """The collector's volume has a group of the chart's, and on OpenShift none, because its profile sets one."""
    groups = [
        Release("default", *arguments).pods()[1]["spec"].get("securityContext", {}).get("fsGroup")
        for arguments in ((), ("--api-versions", "security.openshift.io/v1/SecurityContextConstraints"))
    ]

    assert [10001, None] == groups


@pytest.mark.parametrize("value_set", VALUE_SETS)
def test_the_objects_of_a_component_belong_together(value_set):
    """Selectors match the labels of one pod and not of another; ports that are named exist."""
    release = Release(value_set)
    pods = release.pods()
    labels = [pod["metadata"]["labels"] for pod in pods]
    ports = [{port["name"] for port in pod["spec"]["containers"][0]["ports"]} for pod in pods]
    selectors = [
        *(found["spec"]["selector"] for found in release.find("Service")),
        *(found["spec"]["podSelector"]["matchLabels"] for found in release.find("NetworkPolicy")),
        *(
            found["spec"]["selector"]["matchLabels"]
            for kind in ("Deployment", "StatefulSet", "PodDisruptionBudget", "ServiceMonitor")
            for found in release.find(kind)
        ),
    ]

    for selector in selectors:
        assert 1 == sum(selector.items() <= found.items() for found in labels)
    for service, named in zip(release.find("Service"), ports, strict=True):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named
    for service, monitor in zip(release.find("Service"), release.find("ServiceMonitor"), strict=False):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= {
            port["name"] for port in service["spec"]["ports"]
        }
    for policy, named in zip(release.find("NetworkPolicy"), ports, strict=False):
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= named
    for pod, named in zip(pods, ports, strict=True):
        (container,) = pod["spec"]["containers"]
        probes = [container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
        assert {probe["httpGet"]["port"] for probe in probes} <= named
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        claims = {
            claim["metadata"]["name"]
            for o in release.find("StatefulSet")
            for claim in o["spec"]["volumeClaimTemplates"]
        }
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes | claims


@pytest.mark.parametrize(
    ("arguments", "image"),
    [
        ((), f"registry.example/otel-tbot:{__version__}"),
        (("--set", "image.tag=1.2.3"), "registry.example/otel-tbot:1.2.3"),
        (
            ("--set", f"image.tag=1.2.3,image.digest=sha256:{'a' * 64}"),
            f"registry.example/otel-tbot@sha256:{'a' * 64}",
        ),
    ],
)
def test_the_image_has_a_digest_or_a_tag(arguments, image):
    """The digest wins, and without either the tag is the version."""
    bridge, collector = Release("default", *arguments).pods()

    assert image == bridge["spec"]["containers"][0]["image"]
    assert "docker.io/otel/opentelemetry-collector-contrib:0.161.0" == collector["spec"]["containers"][0]["image"]


def test_both_ip_families_are_served():
    """The Services are dual stack if the cluster is, and no address of a pod names one family."""
    release = Release("default")
    arguments, environ = read_container(release.pods()[0])
    _, collector = read_container(release.pods()[1])

    assert ["PreferDualStack"] * 2 == [service["spec"]["ipFamilyPolicy"] for service in release.find("Service")]
    assert "[::]:8080" == arguments[arguments.index("--listen") + 1]
    assert {":4318", ":13133"} == {collector["TBOT_OTLP_HTTP"], collector["TBOT_HEALTH"]}
    assert "http://otel-tbot-collector:4318" == environ["OTEL_EXPORTER_OTLP_ENDPOINT"]


def test_tls_is_the_same_for_service_probes_and_scraping():
    """With a certificate, everything that asks the bridge asks over HTTPS, on the standard port."""
    release = Release("direct", "--set", "bridge.tls.secretName=tls,serviceMonitor.enabled=true")
    (pod,) = release.pods()
    (container,) = pod["spec"]["containers"]
    (service,) = release.find("Service")
    (monitor,) = release.find("ServiceMonitor")

    assert [{"name": "https", "port": 443, "targetPort": "https"}] == service["spec"]["ports"]
    assert {"HTTPS"} == {
        container[f"{name}Probe"]["httpGet"]["scheme"] for name in ("startup", "readiness", "liveness")
    }
    assert "https" == monitor["spec"]["endpoints"][0]["scheme"]
    assert [
        "--tls-cert",
        "/run/secrets/otel-tbot-tls/tls.crt",
        "--tls-key",
        "/run/secrets/otel-tbot-tls/tls.key",
    ] == container["args"][-4:]


def test_an_autoscaler_owns_the_number_of_bridges():
    """With autoscaling, the Deployment names no number, or each upgrade would undo the autoscaler's."""
    assert 2 == Release("default").find("Deployment")[0]["spec"]["replicas"]
    assert not Release("default").find("HorizontalPodAutoscaler")
    scaled = Release("everything")
    (scaler,) = scaled.find("HorizontalPodAutoscaler")
    assert "replicas" not in scaled.find("Deployment")[0]["spec"]
    assert (3, 9) == (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"])


def list_egress(policy):
    """Each egress rule as its peers and its ports."""
    return [(rule.get("to"), {port["port"] for port in rule["ports"]}) for rule in policy["spec"]["egress"]]


def test_dns_is_reached_wherever_it_answers():
    """Both policies let DNS out to CoreDNS, to OpenShift's DNS on its port, and to NodeLocal DNSCache's address."""
    for policy in Release("default").find("NetworkPolicy"):
        peers, ports = list_egress(policy)[0]

        assert {53, 5353} == ports
        assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in peers
        assert {"k8s-app": "kube-dns"} in [peer.get("podSelector", {}).get("matchLabels") for peer in peers]
        assert {"kubernetes.io/metadata.name": "openshift-dns"} in [
            peer.get("namespaceSelector", {}).get("matchLabels") for peer in peers
        ]


@pytest.mark.parametrize(
    ("endpoint", "namespace", "port"),
    [
        ("http://otel-collector.observability.svc:4317", "observability", 4317),
        ("https://otel-collector.telemetry.svc.cluster.local", "telemetry", 443),
        ("http://collector.example/otlp", None, 80),
        ("https://collector.svc.example:4318", None, 4318),
        ("http://192.0.2.1:4317", None, 4317),
        ("http://[2001:db8::1]:4317", None, 4317),
    ],
)
def test_egress_leads_to_the_destination_and_no_further(endpoint, namespace, port):
    """To the namespace of a Service, or to any address on the port; from the pod that sends there."""
    labels = {"kubernetes.io/metadata.name": namespace}
    expected = [{"namespaceSelector": {"matchLabels": labels}}] if namespace else None
    bridge, collector = Release("default", "--set", f"destination.endpoint={endpoint}").find("NetworkPolicy")
    (direct,) = Release("default", "--set", f"destination.endpoint={endpoint},collector.enabled=false").find(
        "NetworkPolicy"
    )

    assert (expected, {port}) == list_egress(collector)[1] == list_egress(direct)[1]
    assert {"otlp-http"} == list_egress(bridge)[1][1]
    assert [2, 2, 2] == [len(list_egress(policy)) for policy in (bridge, collector, direct)]


def test_scrapers_come_in_if_something_scrapes():
    """Prometheus may reach the ports with metrics if there are ServiceMonitors; without, only reports come in."""
    quiet = [policy["spec"]["ingress"] for policy in Release("default").find("NetworkPolicy")]
    scraped = [
        policy["spec"]["ingress"]
        for policy in Release("default", "--set", "serviceMonitor.enabled=true").find("NetworkPolicy")
    ]

    assert "prometheus" not in json.dumps(quiet)
    assert all("prometheus" in json.dumps(ingress) for ingress in scraped)


def test_the_patch_of_a_plain_deployment_fits_the_release():
    """Label, Secret, address and opt-in of deploy/tbot-patch.yaml are those of the default values."""
    release = Release("default")
    (service, _), (policy, _) = release.find("Service"), release.find("NetworkPolicy")
    patch = yaml.safe_load((ROOT / "deploy" / "tbot-patch.yaml").read_text())["spec"]["template"]
    variables = {variable["name"]: variable for variable in patch["spec"]["containers"][0]["env"]}
    prefix = variables["OTEL_TBOT_PREFIX"]["valueFrom"]["secretKeyRef"]
    (volume,) = release.pods()[0]["spec"]["volumes"]
    address = f"http://{service['metadata']['name']}.{service['metadata']['namespace']}.svc/$(OTEL_TBOT_PREFIX)"

    assert patch["metadata"]["labels"] == policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert {"name": volume["secret"]["secretName"], "key": "prefix", "optional": True} == prefix
    assert ["OTEL_TBOT_PREFIX", "TELEPORT_ANONYMOUS_TELEMETRY", "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"] == list(
        variables
    )
    assert address == variables["TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS"]["value"]
    assert "1" == variables["TELEPORT_ANONYMOUS_TELEMETRY"]["value"]


# What the pods run.


@pytest.mark.parametrize("value_set", [name for name in VALUE_SETS if name != "direct"])
def test_the_collector_sends_what_the_guard_lets_through(value_set, otelcol, tmp_path):
    """The real collector, as its pod starts it: the event arrives at the destination without what identifies."""
    release = Release(value_set)
    is_grpc = value_set == "default"
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    (tmp_path / "otel-tbot-ca").mkdir()
    authority.cert_pem.write_to_path(tmp_path / "otel-tbot-ca" / "ca.crt")
    with OtlpGrpcServer() if is_grpc else OtlpHttpServer(tls=tls) as destination:
        environ = {"TBOT_GATEWAY": destination.url, "COLLECTOR_AUTHORIZATION": "Bearer of-a-secret"}
        with ChartCollector(otelcol, release, tmp_path, environ) as collector:
            for host in ("127.0.0.1", "[::1]"):
                answer = requests.post(f"{collector.url(host)}/v1/logs", json=an_export(), timeout=60)
                assert 200 == answer.status_code
            poll_until(lambda: count_records(destination) == 2, waiting_for="both events")
            # The destination counts an event before the collector knows that it was sent.
            url = f"http://[::1]:{collector.telemetry_port}/metrics"
            metrics = wait_for_metrics(url, "otelcol_exporter_sent_log_records")
    sent = str([request.message for request in destination.requests])

    assert IDENTITY not in sent
    assert "tbot.start" in sent
    assert "otelcol_exporter_sent_log_records" in metrics
    if not is_grpc:
        assert {"Bearer of-a-secret"} == {request.headers["authorization"] for request in destination.requests}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("endpoint", ["https://collector.example", "http://[2001:db8::1]/", "http://a.b.svc:4317/otlp"])
def test_the_collector_starts_with_every_form_of_an_endpoint(endpoint, protocol, otelcol, tmp_path):
    """A URL without a port, or with a path, is valid over both protocols, as it is for a bridge without a collector."""
    release = Release("default", "--set", f"destination.endpoint={endpoint},destination.protocol={protocol}")
    with ChartCollector(otelcol, release, tmp_path, {}) as collector:
        assert 200 == requests.post(f"{collector.url()}/v1/logs", json=an_export(), timeout=60).status_code


@pytest.mark.parametrize(
    ("server", "protocol", "path"),
    [
        (OtlpGrpcServer, "grpc", "logs"),
        (OtlpHttpServer, "http/protobuf", "/otlp/v1/logs"),
    ],
)
def test_the_path_of_an_endpoint_is_for_http(server, protocol, path, otelcol, tmp_path):
    """The event arrives under the path over HTTP, and without it over gRPC, which has no paths."""
    with server() as destination:
        endpoint = f"{destination.url}/otlp"
        release = Release("default", "--set", f"destination.endpoint={endpoint},destination.protocol={protocol}")
        with ChartCollector(otelcol, release, tmp_path, {}) as collector:
            assert 200 == requests.post(f"{collector.url()}/v1/logs", json=an_export(), timeout=60).status_code
            poll_until(lambda: count_records(destination), waiting_for="the event")

    assert [path] == [request.path for request in destination.requests]


def test_an_accepted_report_outlives_the_destination_and_the_collector(otelcol, tmp_path):
    """With the destination down and the collector killed after it answered, the event arrives once both are back."""
    dead = {"TBOT_GATEWAY": "http://127.0.0.1:1"}
    with OtlpGrpcServer() as destination, ChartCollector(otelcol, Release("default"), tmp_path, dead) as collector:
        with BridgeProcess({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url()}) as bridge:
            assert 200 == post(bridge).status_code
        collector.kill()
        collector.environ["TBOT_GATEWAY"] = destination.url
        assert collector.start(), collector.log()
        poll_until(lambda: count_records(destination), waiting_for="the event")

    assert 1 == count_records(destination)


def an_export():
    """An OTLP request with a start and another record, both with what identifies a host."""
    counts = [f"tbot.destinations_{kind}" for kind in ("other", "database", "kubernetes", "application")]
    attributes = {
        "tbot.run_mode": "daemon",
        "session.id": "0b9b3d5c-5c1e-4d0b-9b3d-5c5c1e4d0b9b",
        "host.name": IDENTITY,
    }
    texts = [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
    numbers = [{"key": key, "value": {"intValue": "0"}} for key in counts]
    record = {
        "timeUnixNano": "1790000000000000000",
        "attributes": texts + numbers,
        "body": {"stringValue": "tbot.start"},
    }
    resource = {"attributes": [{"key": "host.name", "value": {"stringValue": IDENTITY}}]}
    records = [record | {"eventName": name} for name in ("tbot.start", "another.event")]
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": records}]}]}


def count_records(destination):
    """How many log records a destination has."""
    return sum(
        len(scope.log_records)
        for request in destination.requests
        for resource in request.message.resource_logs
        for scope in resource.scope_logs
    )


# Alerts.


def test_promtool_accepts_the_rules_and_their_unit_tests(promtool, tmp_path):
    """The rules are valid, and each alert is raised by the series that should raise it and by no others."""
    (tmp_path / "alerts.yaml").write_text(ALERTS.read_text())
    (tmp_path / "alerts.test.yaml").write_text((Path(__file__).parent / "alerts.test.yaml").read_text())
    checked = run(promtool, "check", "rules", "--lint-fatal", "alerts.yaml", cwd=tmp_path)
    tested = run(promtool, "test", "rules", "alerts.test.yaml", cwd=tmp_path)

    assert 0 == checked.returncode, checked.stderr
    assert 0 == tested.returncode, tested.stderr + tested.stdout


def test_every_alert_has_a_unit_test_a_heading_and_a_place_in_the_chart():
    """Each is raised in alerts.test.yaml, explained in the runbook under its name, and in the PrometheusRule."""
    rules = yaml.safe_load(ALERTS.read_text())
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    tests = yaml.safe_load((Path(__file__).parent / "alerts.test.yaml").read_text())["tests"]
    raised = {row["alertname"] for test in tests for row in test["alert_rule_test"] if row["exp_alerts"]}
    runbook = (ROOT / "docs" / "how-to" / "alerts.md").read_text()
    (rendered,) = Release("everything").find("PrometheusRule")

    assert set(names) == raised
    assert names == re.findall(r"^## (Tbot\w+)$", runbook, re.MULTILINE)
    assert {f"docs/how-to/alerts.md#{name.lower()}" for name in names} == {
        rule["annotations"]["runbook"] for group in rules["groups"] for rule in group["rules"]
    }
    assert rules == rendered["spec"]


# The how-to pages.


def test_values_for_our_chart_are_accepted(tmp_path):
    """Helm renders the chart with the values of each block."""
    ours, _ = read_values_of_pages()

    assert 5 == len(ours)
    for values in ours:
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        rendered = chart.render("--values", str(tmp_path / "values.yaml"))
        assert 0 == rendered.returncode, rendered.stderr


def test_the_lines_for_tbot_are_the_same_everywhere():
    """Page, Application of Argo CD, patch and the notes that Helm prints name the same label and variables."""
    _, teleports = read_values_of_pages()
    keys = ("anonymousTelemetry", "extraLabels", "extraEnv")
    whole = [{key: values[key] for key in keys} for values in teleports if "anonymousTelemetry" in values]
    patch = yaml.safe_load((ROOT / "deploy" / "tbot-patch.yaml").read_text())["spec"]["template"]
    (container,) = patch["spec"]["containers"]
    # Helm prints notes only if it installs; the client installs nothing.
    command = ("install", "otel-tbot", chart.CHART, "--namespace", "otel-tbot", "--dry-run=client")
    notes = run(chart.HELM, *command).stdout.partition("Values for Teleport's tbot chart:\n")[2]

    assert 2 == len(whole)
    assert whole[0] == whole[1] == yaml.safe_load(notes)
    assert patch["metadata"]["labels"] == whole[0]["extraLabels"]["pod"]
    assert [entry for entry in container["env"] if entry["name"] != "TELEPORT_ANONYMOUS_TELEMETRY"] == whole[0][
        "extraEnv"
    ]


def test_the_commands_for_the_secret_give_both_namespaces_the_same_prefix(kubectl, tmp_path):
    """The page's commands put one prefix of the right form into both; kubectl is real for what needs no cluster."""
    blocks = [
        example.text
        for example in Page(ROOT / "docs" / "how-to" / "kubernetes.md").examples()
        if "create secret" in example.text
    ]
    programs = tmp_path / "programs"
    programs.mkdir()
    # What asks the cluster is answered from files; what makes an object is kubectl's own work.
    (programs / "kubectl").write_text(
        f"""#!/bin/sh -eu
case "$*" in
*"create namespace"*) ;;
*"create secret"*"--dry-run=client"*) exec {kubectl} "$@" ;;
*"create secret"*) {kubectl} "$@" --dry-run=client --output yaml > created.yaml ;;
*"get secret"*) sed -n 's/^  prefix: //p' created.yaml | tr -d '\\n' ;;
*apply*) cat > applied.yaml ;;
*) exit 64 ;;
esac
"""
    )
    (programs / "helm").write_text("#!/bin/sh\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    environ = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)}
    finished = run("bash", "-e", "-o", "pipefail", "-c", "".join(blocks), env=environ, cwd=tmp_path)

    assert 0 == finished.returncode, finished.stderr
    created, applied = (yaml.safe_load((tmp_path / f"{name}.yaml").read_text()) for name in ("created", "applied"))
    assert 2 == len(blocks)
    assert created["data"] == applied["data"]
    assert re.fullmatch(rb"[0-9a-f]{32}", base64.b64decode(created["data"]["prefix"]))
    assert ["otel-tbot", "teleport"] == [found["metadata"]["namespace"] for found in (created, applied)]
    assert ["otel-tbot-prefix"] * 2 == [found["metadata"]["name"] for found in (created, applied)]


def test_the_patch_adds_to_a_deployment_and_takes_nothing_away(kubectl, tmp_path):
    """kubectl's own merge: the label and three variables are new, all else of a tbot's Deployment stays."""
    container = {"name": "tbot", "image": "tbot:18.4.1", "args": ["start"], "env": [{"name": "POD_NAME", "value": "x"}]}
    template = {
        "metadata": {"labels": {"app": "tbot"}},
        "spec": {"containers": [container, {"name": "other", "image": "x"}]},
    }
    selector = {"matchLabels": {"app": "tbot"}}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "tbot"},
        "spec": {"selector": selector, "template": template},
    }
    (tmp_path / "tbot.yaml").write_text(yaml.safe_dump(deployment))
    patch = ROOT / "deploy" / "tbot-patch.yaml"
    options = ("--local", "--filename", "tbot.yaml", "--patch-file", patch, "--output", "yaml")
    finished = run(kubectl, "patch", *options, cwd=tmp_path)

    assert 0 == finished.returncode, finished.stderr
    patched = yaml.safe_load(finished.stdout)["spec"]["template"]
    first, second = patched["spec"]["containers"]
    assert {"app": "tbot", "otel-tbot/reports": "true"} == patched["metadata"]["labels"]
    assert container["env"] == [entry for entry in first["env"] if entry["name"] == "POD_NAME"]
    assert yaml.safe_load(patch.read_text())["spec"]["template"]["spec"]["containers"][0]["env"] == [
        entry for entry in first["env"] if entry["name"] != "POD_NAME"
    ]
    assert {**first, "env": None} == {**container, "env": None}
    assert template["spec"]["containers"][1].items() <= second.items()


def test_the_bridge_runs_as_its_pod_starts_it(reporter, otelcol, tmp_path):
    """Arguments and variables of both pods, with TLS: a report over HTTPS reaches the destination, probes answer."""
    release = Release("default", "--set", "bridge.tls.secretName=tls")
    prefix = "0123456789abcdef0123456789abcdef"
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    for folder in ("otel-tbot-prefix", "otel-tbot-tls", "authority"):
        (tmp_path / folder).mkdir()
    (tmp_path / "otel-tbot-prefix" / "prefix").write_text(prefix)
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "otel-tbot-tls" / "tls.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "otel-tbot-tls" / "tls.key")
    authority.cert_pem.write_to_path(tmp_path / "authority" / "ca.crt")
    (tmp_path / "collector").mkdir()
    with OtlpGrpcServer() as destination:
        environ = {"TBOT_GATEWAY": destination.url}
        with ChartCollector(otelcol, release, tmp_path / "collector", environ) as collector:
            arguments, environ = read_bridge(release, tmp_path)
            assert "http://otel-tbot-collector:4318" == environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
            environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url()
            with BridgeProcess(environ, *arguments[1:]) as bridge:
                address = f"https://localhost:{bridge.port}"
                trusted = str(tmp_path / "authority" / "ca.crt")
                for probe in ("/healthz", "/readyz"):
                    assert 200 == requests.get(address + probe, verify=trusted, timeout=60).status_code
                # As the page on Kubernetes has it: tbot's own authorities, and the folder of one more.
                environ = {
                    "TELEPORT_ANONYMOUS_TELEMETRY": "1",
                    "TELEPORT_ANONYMOUS_TELEMETRY_ADDRESS": f"{address}/{prefix}",
                    "SSL_CERT_DIR": f"/etc/ssl/certs:{tmp_path / 'authority'}",
                }
                trusting = run(reporter, "start", "--oneshot", env=environ)
                environ.pop("SSL_CERT_DIR")
                doubting = run(reporter, "start", "--oneshot", env=environ)
                poll_until(lambda: count_records(destination), waiting_for="the event")

    assert trusting.stdout.startswith("ok ")
    assert doubting.stdout.startswith("error ")
    assert [0, 0] == [trusting.returncode, doubting.returncode]
    assert 1 == count_records(destination)


def test_the_alert_for_the_collector_names_every_outcome_without_acceptance():
    """Its reasons are the outcomes after which the collector does not have an event."""
    (expression,) = (
        rule["expr"]
        for group in yaml.safe_load(ALERTS.read_text())["groups"]
        for rule in group["rules"]
        if rule["alert"] == "TbotCollectorUnreachable"
    )
    (reasons,) = re.findall(r'reason=~"([^"]+)"', expression)

    assert {outcome.value for outcome in Outcome} - {"off", "accepted"} == set(reasons.split("|"))


def wait_for_metrics(url, counter):
    """The metrics at *url*, once they have *counter*."""
    poll_until(lambda: counter in requests.get(url, timeout=60).text, waiting_for=counter)
    return requests.get(url, timeout=60).text


@pytest.mark.parametrize("signal", ["log", "span"])
def test_every_metric_of_the_alerts_exists(signal, otelcol, tmp_path):
    """Bridge and collector expose each metric that a rule names, under this name, with the labels it asks for."""
    rules = yaml.safe_load(ALERTS.read_text())
    text = " ".join(rule["expr"] for group in rules["groups"] for rule in group["rules"])
    kinds = {"log": "log_records", "span": "spans"}
    other = kinds["span" if signal == "log" else "log"]
    named = {name for name in re.findall(r"\b(?:otel_tbot|otelcol)_\w+", text) if not name.endswith(other)}
    exposed = ""
    for code in (None, grpc.StatusCode.INVALID_ARGUMENT):
        folder = tmp_path / str(code)
        folder.mkdir()
        with OtlpGrpcServer(code=code) as destination:
            environ = {"TBOT_GATEWAY": destination.url}
            with ChartCollector(otelcol, Release("default"), folder, environ) as collector:
                with BridgeProcess(
                    {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url(), "OTEL_TBOT_SIGNAL": signal}
                ) as bridge:
                    assert 200 == post(bridge).status_code
                    assert 200 != post(bridge, b"not a report").status_code
                    exposed += requests.get(f"{bridge.url}/metrics", timeout=60).text
                counter = f"otelcol_exporter_{'sent' if code is None else 'send_failed'}_{kinds[signal]}{{"
                exposed += wait_for_metrics(f"http://127.0.0.1:{collector.telemetry_port}/metrics", counter)
    series = [line for line in exposed.splitlines() if line.startswith(tuple(named))]

    assert 6 == len(named)
    assert named <= {re.match(r"\w+", line)[0] for line in series}
    assert all('exporter="otlp_grpc/gateway"' in line for line in series if line.startswith("otelcol_"))
    assert all('reason="' in line for line in series if line.startswith("otel_tbot_bridge_reports_rejected"))
