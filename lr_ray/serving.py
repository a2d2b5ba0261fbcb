"""An open-weights judge inside the Ray cluster: Ray Serve LLM, several vLLM replicas behind one endpoint.

Requests that begin alike go to the replica that has their beginning in its prefix cache. `judge.base_url`
points at it as at any other endpoint. It listens on the loopback of each node that holds a replica, or,
with a key, wherever `serving.host` says.
"""

import hashlib
import hmac
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from lr_ray import config as configs
from lr_ray import runtime
from lr_ray.config import Config, api_key
from lr_ray.sampling import check_model

APP = "lr-ray-judge"
FIRST_ANSWER = 120.0  # seconds that the first token may take
REPLICA_CPUS, INGRESS_CPUS = 0.1, 0.1  # Ray CPUs of what waits for an engine, and of the endpoint
# Without a grammar that is bounded and free of white space, small models write until they are cut off.
ENGINE: dict[str, Any] = {
    "enable_prefix_caching": True,
    "enable_prompt_tokens_details": True,
    "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
}
# Ray's default threshold is infinite: all that begins alike, as every judge prompt of a kind does, went to
# one replica. Its tree of prompts grows for ever unless it is told to forget.
ROUTER: dict[str, Any] = {
    "imbalanced_threshold": 4,
    "do_eviction": True,
    "eviction_threshold_chars": 40_000_000,
    "eviction_target_chars": 32_000_000,
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(config: Config) -> None:
    """Serve until interrupted or terminated; prints the base URL once it answers.

    Raises:
        ValueError: bad config, too few CPUs or GPUs, or the port is another application's.
    """
    check(config)
    runtime.start()
    # A stopped job gets SIGTERM, and one that a shell started in the background ignores SIGINT.
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGINT, _interrupted)
    try:
        url = start(config)
        sys.stdout.write(f"judge {name(config)} at {url}\n")
        sys.stdout.flush()
        while True:
            time.sleep(1)
    finally:
        stop()


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def check(config: Config) -> None:
    """Find what would stop the server, before Ray is started.

    Raises:
        ValueError: no model, or an address that others reach and no key.
    """
    serving = config.serving
    check_model(serving.model, "serving.model")
    if serving.host not in LOOPBACK and not api_key(config):
        raise ValueError(
            f"serving.host: {serving.host} is open to other machines; set a key in "
            f"{config.judge.api_key_env}, which callers must then show, or use 127.0.0.1"
        )


def name(config: Config) -> str:
    """The model's name at the endpoint."""
    return config.judge.model or config.serving.model.rstrip("/").rpartition("/")[2]


def start(config: Config) -> str:
    """Deploy on the Ray that is connected, and wait until it answers; the base URL.

    Raises:
        ValueError: too few CPUs or GPUs, or the port is not ours.
    """
    import ray
    from ray import serve as ray_serve

    serving = config.serving
    workers = serving.replicas * serving.engine.get("tensor_parallel_size", 1)
    workers *= serving.engine.get("pipeline_parallel_size", 1)
    there = ray.cluster_resources()
    cpus = workers * serving.num_cpus + serving.replicas * REPLICA_CPUS + INGRESS_CPUS
    for kind, asked in (("CPU", cpus), ("GPU", workers * serving.num_gpus)):
        if there.get(kind, 0) + 1e-9 < asked:
            raise ValueError(
                f"too few {kind}s: the judge's {serving.replicas} replicas take {asked:g}, "
                f"Ray has {there.get(kind, 0):g}; lower serving.replicas or serving.num_{kind.lower()}s"
            )
    options: Any = {"host": serving.host, "port": serving.port}
    ray_serve.start(proxy_location="EveryNode", http_options=options)
    ray_serve.run(application(config), name=APP, route_prefix="/")
    host = serving.host if serving.host in LOOPBACK else ray.util.get_node_ip_address()
    url = f"http://{f'[{host}]' if ':' in host else host}:{serving.port}/v1"
    _expect(url, config)
    return url


def stop() -> None:
    """Take the judge down; Ray Serve too, unless it serves something else."""
    from ray import serve as ray_serve

    ray_serve.delete(APP)
    if not ray_serve.status().applications:
        ray_serve.shutdown()


def build(args: dict[str, str]) -> Any:
    """The application by a Serve config file, as a RayService has it: `args` is {config: its path}.

    Ray Serve then listens where that file says; in a pod that is every address, so there must be a key.

    Raises:
        ValueError: other `args`, bad config, no model, or no key.
    """
    if args.keys() != {"config"}:
        raise ValueError(f"args: expected config alone, the path of lr-ray's config; got {sorted(args)}")
    config = configs.load(args["config"])
    check_model(config.serving.model, "serving.model")
    if not api_key(config):
        name = config.judge.api_key_env
        raise ValueError(f"{name}: a judge that other pods reach needs a key, which callers must then show")
    return application(config)


def application(config: Config) -> Any:
    """The Serve application: one LLM deployment and the endpoint before it."""
    from ray import serve as ray_serve
    from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
    from ray.llm._internal.serve.core.ingress.ingress import init
    from ray.serve.config import RequestRouterConfig
    from ray.serve.llm import LLMConfig, build_llm_deployment
    from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
    from ray.serve.llm.request_router import PrefixCacheAffinityRouter

    serving, model = config.serving, name(config)
    bundle = {"CPU": serving.num_cpus} | ({"GPU": serving.num_gpus} if serving.num_gpus else {})
    routing: Any = {
        "request_router_class": PrefixCacheAffinityRouter,
        "request_router_kwargs": ROUTER | serving.router,
    }
    llm = LLMConfig(
        model_loading_config={"model_id": model, "model_source": _source(serving.model)},
        engine_kwargs=ENGINE | serving.engine,
        placement_group_config={"bundle_per_worker": bundle},
        deployment_config={
            "num_replicas": serving.replicas,
            "ray_actor_options": {"num_cpus": REPLICA_CPUS},
            "request_router_config": RequestRouterConfig(**routing),
        },
        runtime_env={"env_vars": serving.env},
    )
    # As Ray's own `build_openai_app`, which leaves no room for a guard.
    app = init()
    key = api_key(config)
    app.add_middleware(Guard, digest=_digest(key) if key else None)
    ingress: Any = ray_serve.deployment(
        make_fastapi_ingress(OpenAiIngress, app=app),
        num_replicas=1,
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
    )
    return ingress.bind(
        llm_deployments={model: build_llm_deployment(llm)},
        model_cards={model: to_model_metadata(model, llm)},
    )


def _source(model: str) -> str:
    """A folder by its whole path, since replicas run elsewhere; a hub name as it is."""
    return os.path.abspath(model) if os.path.isdir(model) else model


def _digest(key: str) -> str:
    # The actors, and Ray's records of them, hold this in place of the key.
    return hashlib.sha256(key.encode()).hexdigest()


class Guard:
    """ASGI middleware: refuses callers without the key whose SHA-256 is `digest`, and web pages."""

    def __init__(self, app: Callable[..., Any], digest: str | None) -> None:
        self._app, self._digest = app, digest

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if b"origin" in headers:
            # Ray's endpoint allows every origin: a page in a browser here could ask it.
            await _refuse(send, 403, "forbidden", "not for web pages")
        elif self._digest is not None and not self._knows(headers.get(b"authorization", b"")):
            await _refuse(send, 401, "invalid_api_key", "the key is missing or wrong")
        else:
            await self._app(scope, receive, send)

    def _knows(self, authorization: bytes) -> bool:
        scheme, _, key = authorization.partition(b" ")
        shown = hashlib.sha256(key.strip()).hexdigest()
        return scheme.lower() == b"bearer" and hmac.compare_digest(shown, self._digest or "")


async def _refuse(send: Any, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": {"message": message, "type": code, "code": code, "param": None}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _expect(url: str, config: Config) -> None:
    """Find our model at `url`, and have it write one token.

    Raises:
        ValueError: something else is there, or nothing.
        RuntimeError: the engines do not work.
    """
    try:
        models = [model["id"] for model in _ask(f"{url}/models", config)["data"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"serving.port: Ray Serve does not answer at {url} ({error}); where Serve ran in the cluster "
            "before, it keeps the host and port it was started with"
        ) from error
    if name(config) not in models:
        raise ValueError(f"serving.port: {url} serves {', '.join(models)}, not {name(config)}")
    one = {"model": name(config), "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
    try:
        _ask(f"{url}/chat/completions", config, one)
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"the judge's engines do not answer ({error}); Ray's logs of the LLMServer replicas say why"
        ) from error


def _ask(url: str, config: Config, body: dict[str, Any] | None = None) -> Any:
    key = api_key(config)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - http, from above
    # A proxy of the environment does not know this machine, and must not see the key.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=FIRST_ANSWER) as reply:
        return json.load(reply)
