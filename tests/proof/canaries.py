"""Makes canaries, random words for the names of a host, a user or a cluster, and searches for them in bytes."""

import base64
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

# Variables that OpenTelemetry, requests, grpc, Kubernetes, clouds, CI systems, shells and Teleport read or set. If
# a reader checks the form of a value, _FORMS has that form.
PLAIN_VARIABLES = (
    # Shell, session and container.
    *("HOSTNAME", "HOST", "COMPUTERNAME", "USERDOMAIN", "LOGNAME", "USER", "USERNAME", "SUDO_USER", "MAIL", "EMAIL"),
    *("DEBFULLNAME", "GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "DOMAINNAME", "CONTAINER_ID", "CONTAINER_NAME"),
    *("SSH_CLIENT",),
    *("SSH_CONNECTION", "SSH_TTY", "SSH_AUTH_SOCK", "INVOCATION_ID", "JOURNAL_STREAM", "MACHINE_ID", "XDG_SESSION_ID"),
    # OpenTelemetry.
    *("OTEL_SERVICE_NAME", "OTEL_SERVICE_NAMESPACE", "OTEL_PYTHON_ID_GENERATOR_CANARY", "OTEL_NODE_NAME"),
    *("OTEL_POD_NAME",),
    *("OTEL_BSP_CANARY", "TRACEPARENT", "TRACESTATE", "BAGGAGE", "OTEL_TRACE_PARENT", "TRACE_ID", "TRACEID"),
    # Kubernetes.
    *("KUBERNETES_SERVICE_HOST", "KUBERNETES_PORT", "K8S_NODE_NAME", "NODE_NAME", "POD_NAME", "POD_NAMESPACE"),
    *("POD_UID",),
    *("POD_IP", "HOST_IP", "NAMESPACE", "K8S_CLUSTER_NAME", "CLUSTER_NAME", "KUBECONFIG", "MY_POD_NAME"),
    *("CONTAINER_IMAGE",),
    # Clouds.
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AWS_PROFILE",),
    *("AWS_ROLE_ARN", "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_EXECUTION_ENV"),
    *("_X_AMZN_TRACE_ID",),
    *("ECS_CONTAINER_METADATA_URI", "ECS_CONTAINER_METADATA_URI_V4", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"),
    *("GCP_PROJECT",),
    *("GOOGLE_APPLICATION_CREDENTIALS", "K_SERVICE", "K_REVISION", "K_CONFIGURATION", "FUNCTION_NAME"),
    *("FUNCTION_TARGET",),
    *("GAE_SERVICE", "GAE_INSTANCE", "GAE_VERSION", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_SUBSCRIPTION_ID"),
    *("WEBSITE_SITE_NAME", "WEBSITE_HOSTNAME", "WEBSITE_INSTANCE_ID", "WEBSITE_RESOURCE_GROUP", "REGION_NAME"),
    *("FLY_APP_NAME",),
    *("FLY_ALLOC_ID", "DYNO", "HEROKU_APP_NAME", "HEROKU_DYNO_ID", "RENDER_INSTANCE_ID", "RAILWAY_PROJECT_ID"),
    # CI.
    *("CI", "GITHUB_REPOSITORY", "GITHUB_ACTOR", "GITHUB_RUN_ID", "GITHUB_SHA", "GITHUB_REF", "GITHUB_TOKEN"),
    *("GITHUB_JOB",),
    *("GITHUB_SERVER_URL", "GITHUB_WORKSPACE", "RUNNER_NAME", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "GITLAB_USER_LOGIN"),
    *("CI_PROJECT_PATH", "CI_JOB_ID", "CI_JOB_TOKEN", "CI_SERVER_URL", "CI_RUNNER_ID", "CI_COMMIT_SHA"),
    *("CIRCLE_PROJECT_REPONAME",),
    *("CIRCLE_BUILD_NUM", "CIRCLE_OIDC_TOKEN", "BUILDKITE_AGENT_NAME", "BUILDKITE_BUILD_ID", "JENKINS_URL"),
    *("BUILD_TAG",),
    *("JOB_NAME", "NODE_LABELS", "SYSTEM_TEAMPROJECT", "BUILD_REPOSITORY_NAME", "AGENT_NAME", "BITBUCKET_REPO_SLUG"),
    *("BITBUCKET_BUILD_NUMBER", "SPACELIFT_RUN_ID", "TF_WORKSPACE", "TFC_RUN_ID", "DRONE_REPO", "TRAVIS_REPO_SLUG"),
    # Teleport and tbot, as far as they change no event.
    *("TELEPORT_PROXY", "TELEPORT_AUTH_SERVER", "TELEPORT_CLUSTER", "TELEPORT_USER", "TELEPORT_SITE", "TELEPORT_HOME"),
    *("TELEPORT_BOT_TOKEN", "TELEPORT_IDENTITY_FILE"),
    # requests, urllib3 and grpc.
    *("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSLKEYLOGFILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"),
    *("GRPC_BINARY_LOG_FILTER",),
    *("GRPC_PROXY_EXP", "NO_GRPC_PROXY", "GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS"),
)  # fmt: skip
_FORMS = {
    # The secrets of TLS handshakes would be written to this file.
    "SSLKEYLOGFILE": "/nonexistent/{}",
    "TRACEPARENT": "00-{hex32}-{hex16}-01",
    "GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS": "",
    "BAGGAGE": "user={}",
    "KUBERNETES_SERVICE_HOST": "{}.test",
}


class Canaries:
    """Makes random words, each for one place, and finds them."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}

    def make(self, place: str) -> str:
        """Returns a new word for *place*: a letter and 20 hexadecimal digits, valid as a host, path or user name."""
        self.words[place] = f"c{secrets.token_hex(10)}"
        return self.words[place]

    def to_environ(self) -> dict[str, str]:
        """Returns every variable that names a host, a user, a cluster or a build, or adds to a resource."""
        environ = {}
        for name in PLAIN_VARIABLES:
            word = self.make(name)
            form = _FORMS.get(name, "{}")
            environ[name] = form.format(word, hex32=word[1:].ljust(32, "a"), hex16=word[1:17])
        # Without the letter, because trace ids are hexadecimal.
        self.words["TRACEPARENT"] = environ["TRACEPARENT"][3:23]
        keys = (
            "host.name",
            "host.id",
            "k8s.pod.name",
            "k8s.cluster.name",
            "service.instance.id",
            "process.command_line",
        )
        attributes = {key: self.make(f"OTEL_RESOURCE_ATTRIBUTES {key}") for key in keys}
        proxy = f"http://{self.make('proxy user')}:{self.make('proxy password')}@127.0.0.1:1/"
        environ |= {
            "OTEL_RESOURCE_ATTRIBUTES": ",".join(f"{key}={value}" for key, value in attributes.items()),
            "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "*",
            "OTEL_PROPAGATORS": "tracecontext,baggage",
            "OTEL_TRACES_SAMPLER": "always_on",
            **dict.fromkeys(
                ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "grpc_proxy"), proxy
            ),
            "NO_PROXY": "",
        }
        return {name: value for name, value in environ.items() if value or name == "NO_PROXY"}

    def to_tbot_yaml(self) -> str:
        """Returns a configuration of tbot with a canary in every string that it can hold."""
        make = self.make
        config = {
            "version": "v2",
            "proxy_server": f"{make('proxy_server')}.test:443",
            "auth_server": f"{make('auth_server')}.test:3025",
            "certificate_ttl": "1h",
            "renewal_interval": "20m",
            "oneshot": True,
            "debug": False,
            "diag_addr": f"127.0.0.1:0#{make('diag_addr')}",
            "credential_ttl": make("credential_ttl"),
            "join_uri": (
                f"tbot+proxy+iam://{make('join_uri token')}:{make('join_uri param')}@{make('join_uri host')}.test:443"
            ),
            "onboarding": {
                "token": make("token"),
                "ca_path": f"/{make('ca_path')}",
                "ca_pins": [f"sha256:{make('ca_pin')}"],
                "join_method": "iam",
                "azure": {"client_id": make("client_id")},
                "bound_keypair": {"registration_secret": make("registration_secret")},
            },
            "storage": {"type": "directory", "path": f"/{make('storage path')}"},
            "outputs": [
                {"type": "identity", "destination": {"path": f"/{make('path')}"}, "cluster": make("cluster")},
                {"type": "database", "service": make("service"), "username": make("username"), "x": make("database")},
                {"type": "kubernetes", "kubernetes_cluster": make("kubernetes_cluster"), "roles": [make("role")]},
                {"type": "application", "app_name": make("app_name")},
                {"type": make("type"), "name": make("name"), make("key"): make("value")},
            ],
            "services": [
                {"type": "spiffe-workload-api", "listen": f"/{make('listen')}", "svids": [{"path": make("svid")}]},
                {"type": "database-tunnel", "listen": f"tcp://{make('tunnel')}:1", "service": make("tunnel service")},
            ],
            make("unknown key"): make("unknown value"),
        }  # fmt: skip
        return json.dumps(config)

    def find(self, *texts: bytes, but: Mapping[str, object] | tuple[str, ...] = ()) -> list[str]:
        """Returns the places whose canaries are in *texts* in any form of `to_forms`, without the places in *but*."""
        lowered = b"\0".join(texts).lower()
        as_sent = b"\0".join(texts)
        return [
            f"{place} as {form}"
            for place, word in self.words.items()
            if place not in but
            for form, sought in to_forms(word)
            if sought in (as_sent if form.startswith("base64") else lowered)
        ]


def to_forms(word: str) -> Iterator[tuple[str, bytes]]:
    """Yields *word* as text, as text backwards, in hexadecimal, and in base64 at each of three offsets."""
    raw = word.encode()
    yield "text", raw
    yield "text backwards", raw[::-1]
    yield "hexadecimal", raw.hex().encode()
    for offset in range(3):
        # Whole groups only, because those at the ends depend on the bytes around the word.
        encoded = base64.b64encode(b"\0" * offset + raw)
        yield f"base64 at {offset}", encoded[4 if offset else 0 : -4]


def write_home(folder: Path, canaries: Canaries) -> None:
    """Writes a home directory with the files that libraries read by themselves."""
    word = canaries.make("netrc login")
    secret = canaries.make("netrc password")
    hosts = ("127.0.0.1", "localhost")
    netrc = folder / ".netrc"
    netrc.write_text("".join(f"machine {host} login {word} password {secret}\n" for host in hosts))
    netrc.chmod(0o600)
    (folder / ".config").mkdir()
    (folder / ".aws").mkdir()
    (folder / ".aws" / "config").write_text(f"[default]\nregion = {canaries.make('aws config')}\n")
    (folder / ".kube").mkdir()
    (folder / ".kube" / "config").write_text(f"current-context: {canaries.make('kube config')}\n")
