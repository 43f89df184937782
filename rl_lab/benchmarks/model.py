"""What the models cost beside their direct formulation and beside what the device could do at best, in one run.

`direct` computes both branches of every layer for every token under one mask (`rl_lab.benchmarks.direct`). Instructions
of a policy have half of the tokens that they may have: the model gets them as its processor makes them, padded to the
longest of the batch, the direct formulation padded to the full length, as the released code pads. Rows of language
models are the same for both. `compiled` is the model's training step with its blocks compiled
(`rl_lab.model.sharding`); all other kinds run as they are written.

The floor is the larger of two times: the step's arithmetic at the measured rate of a large matrix product, and the
weights it must read and write (with cached keys and values, where there are any) at the measured rate of a large copy.
Kinds take turns, so that other load hits all of them alike, and ratios are medians over rounds. On CPU the time is that
of the process, one thread by default. On CUDA it is wall time after synchronisation, layers compute in bfloat16, and
sampling at batch 1 is a CUDA graph.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedModel

from algos.flow_matching import FlowMatching
from algos.objective import FlowPolicy
from algos.policy import GROUPS
from envs.options import Processes, Rounds, Rows
from rl_lab.benchmarks.direct import DirectPolicy, DirectVLM, segment_mask
from rl_lab.benchmarks.options import Device, check_device
from rl_lab.benchmarks.rpro import random_batch, saved_bytes
from rl_lab.common.errors import UserError
from rl_lab.common.machine import seconds
from rl_lab.config.section import Preset
from rl_lab.learner.optim import adamw
from rl_lab.model.checkpoint import vlm_config
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.mot import LayerCache
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.model.sharding import check_compiler, compile_blocks
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration

Work = Callable[[], Any]
PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}
COPY_BYTES = {"cpu": 2**27, "cuda": 2**31}
RATIOS = (("direct", "model"), ("direct", "compiled"))
"""Whose time over whose is in the table."""
PROMPT_TOKENS = 64
"""Text tokens of a language-model row, besides its image."""


@dataclass
class Case:
    """One line of the table: the same work done in several ways, the model's own first."""

    name: str
    batch: int
    kinds: Mapping[str, Work]
    flops: int
    num_bytes: int
    """Least traffic with memory."""
    memory: dict[str, float] = field(default_factory=dict)


def device_rates(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Best of some: FLOP/s of a square matrix product, bytes/s read and written by a copy."""
    side, size = PRODUCT_SIDE[device], COPY_BYTES[device]
    a, b, product = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    product_s = min(seconds(lambda: torch.mm(a, b, out=product), device) for _ in range(10))
    copy_s = min(seconds(lambda: target.copy_(source), device) for _ in range(10))
    return 2 * side**3 / product_s, 2 * size / copy_s


def count_flops(work: Work) -> int:
    """Arithmetic of matrix products and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def num_bytes(*tensors: Tensor) -> int:
    """Bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def training_bytes(parameters: list[nn.Parameter]) -> int:
    """Weights read in both passes, gradients written; AdamW in float32: weight, gradient, two moments in, three out."""
    return sum(parameter.numel() * (3 * parameter.element_size() + 7 * 4) for parameter in parameters)


def graphed(work: Work) -> Work:
    """The same kernels as one CUDA graph; every call fills and returns the same result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def training_case(
    name: str, batch: int, model: PreTrainedModel, losses: Mapping[str, Callable[[], Tensor]]
) -> Iterator[Case]:
    """A step of forward, backward and AdamW; yielded, so that its optimizer is gone when the next case is made."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adamw(parameters, lr=1e-6)

    def step(loss: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    own = next(iter(losses.values()))
    model.train()
    flops = count_flops(lambda: own().backward())
    memory = {"saved_mb": saved_bytes(own) / 2**20}
    model.gradient_checkpointing_enable()
    memory["saved_recomputed_mb"] = saved_bytes(own) / 2**20
    model.gradient_checkpointing_disable()
    kinds = {kind: partial(step, loss) for kind, loss in losses.items()}
    yield Case(name, batch, kinds, flops, training_bytes(parameters), memory)
    optimizer.zero_grad()
    model.eval()


def compiled_copy(policy: HyVLAPolicy) -> HyVLAPolicy:
    """The same policy with compiled blocks; it shares the parameters."""
    shared = copy.deepcopy(policy, {id(parameter): parameter for parameter in policy.parameters()})
    compile_blocks(shared)
    return shared.train()


def policy_cases(policy: HyVLAPolicy, batch: int, compiled: bool) -> Iterator[Case]:
    """Imitation step with everything trained; sampling from image to chunk at batch 1 and 16."""
    objective, direct = FlowMatching(GROUPS), DirectPolicy(policy)
    rows = random_batch(policy, batch, num_real=batch)
    models: dict[str, FlowPolicy] = {"model": policy, "direct": cast(FlowPolicy, direct)}
    if compiled:
        models["compiled"] = compiled_copy(policy)

    def loss(model: FlowPolicy) -> Tensor:
        return objective.loss(model, rows, torch.Generator().manual_seed(0))[0]

    losses = {kind: partial(loss, model) for kind, model in models.items()}
    yield from training_case("policy, training step", batch, policy, losses)
    groups = policy.parameter_groups()
    read_once = num_bytes(*groups["vision"], *groups["vlm"]) - embedding_bytes(policy)
    read_often = num_bytes(*groups["expert"]) * policy.config.num_steps
    for size in (1, 16):
        yield sampling_case(policy, direct, size, read_once + read_often)


def embedding_bytes(model: PreTrainedModel) -> int:
    """The token table, of which a pass reads a few rows."""
    return num_bytes(model.get_input_embeddings().weight)  # type: ignore[arg-type]


@torch.no_grad()
def sampling_case(policy: HyVLAPolicy, direct: DirectPolicy, size: int, weight_bytes: int) -> Case:
    """From images to a chunk of actions; both kinds encode what is seen once, as the released code does."""
    observation = random_batch(policy, size, num_real=size).observation
    assert observation is not None
    noise = policy.sample_noise(size, torch.Generator().manual_seed(0))

    kinds: dict[str, Work] = {
        "model": lambda: policy.sample_actions(policy.encode(observation), noise),
        "direct": lambda: policy.sample_actions(direct.encode(observation), noise),
    }
    prefix = policy.encode(observation)
    traffic = weight_bytes + policy.config.num_steps * num_bytes(prefix.keys, prefix.values)
    flops = count_flops(kinds["model"])
    if size == 1 and noise.is_cuda:
        kinds["model"] = graphed(kinds["model"])
    return Case("policy, sampling", size, kinds, flops, traffic)


def image_prompt(config: HyVLAConfig, size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [B, S] of one image and a question each, pixels [N, 3 * p * p], patch grids [B, 3]."""
    ids, grid = config.special_token_ids, config.token_grid
    row = [ids["image"]] * grid + [ids["row_end"]]
    fixed = [ids["bos"], ids["user"], ids["vision_start"], *row * grid, ids["latent"], ids["vision_end"]]
    text = torch.randint(100, 1000, (size, PROMPT_TOKENS))  # no special token in any vocabulary
    side = config.image_size // config.vision_patch_size
    pixels = torch.rand(size * side**2, 3 * config.vision_patch_size**2) * 2 - 1
    tokens = torch.cat([torch.tensor(fixed).expand(size, -1), text], dim=1)
    return tokens.to(device), pixels.to(device), torch.tensor([[1, side, side]] * size)


class VLMWork:
    """The works of a language model on one batch of an image and a question each."""

    def __init__(self, model: HunYuanVLMoTForConditionalGeneration, config: HyVLAConfig, batch: int) -> None:
        self.model, self.direct, self.batch = model, DirectVLM(model), batch
        self.tokens, self.pixels, self.grids = image_prompt(config, batch, model.device.type)
        self.layout = model.model.layout(self.tokens, None, self.grids).to(model.device)
        self.inputs: dict[str, Any] = {
            "input_ids": self.tokens,
            "pixel_values": self.pixels,
            "layout": self.layout,
        }
        self.mask = segment_mask(self.layout.spans, self.tokens.shape[1], model.device)

    def direct_prefill(self) -> tuple[Tensor, LayerCache]:
        """Residual stream and cache."""
        return self.direct.prefill(self.tokens, self.layout, self.pixels, self.mask)

    def training(self) -> Iterator[Case]:
        """Next-token step on the whole row."""

        def direct_loss() -> Tensor:
            logits = self.model.model.logits(self.direct_prefill()[0])
            return self.model.loss_function(logits, self.tokens, self.model.config.vlm_sizes.vocab)

        losses = {"model": lambda: self.model(**self.inputs, labels=self.tokens).loss, "direct": direct_loss}
        yield from training_case("vlm, training step", self.batch, self.model, losses)

    @torch.no_grad()
    def inference(self) -> list[Case]:
        """Prefill up to the next token's logits, and one decoded token after it."""
        model, logits = self.model, self.model.model.logits
        prefill: dict[str, Work] = {
            "model": lambda: model(**self.inputs, use_cache=True, logits_to_keep=1).logits,
            "direct": lambda: logits(self.direct_prefill()[0][:, -1:]),
        }
        cache, last = DynamicCache(config=model.config), self.tokens[:, -1:]
        model(**self.inputs, past_key_values=cache)
        _, direct_cache = self.direct_prefill()

        def decode() -> Tensor:
            found = model(input_ids=last, past_key_values=cache, use_cache=True).logits
            cache.crop(-1)
            return found

        decoding: dict[str, Work] = {
            "model": decode,
            "direct": lambda: logits(self.direct.decode(last, direct_cache)[0]),
        }
        layers = model.model.language_model.model.layers.named_parameters()
        text_route = [value for name, value in layers if "_v." not in name]
        traffic = num_bytes(*text_route, *direct_cache.keys, *direct_cache.values) + embedding_bytes(model)
        return [
            Case("vlm, prefill", self.batch, prefill, count_flops(prefill["model"]), num_bytes(*model.parameters())),
            Case("vlm, decode one token", self.batch, decoding, count_flops(decode), traffic),
        ]


def lacking_compiler() -> str:
    """What torch.compile lacks here; empty if nothing."""
    try:
        check_compiler()
    except UserError as error:
        return str(error)
    return ""


def measured(case: Case, device: str, rounds: int, rates: tuple[float, float]) -> dict[str, Any]:
    """The row of a case, after a round of warm-up."""
    is_training = "training" in case.name
    with torch.set_grad_enabled(is_training):
        direct_flops = count_flops(case.kinds["direct"])
        times = [{kind: seconds(work, device) for kind, work in case.kinds.items()} for _ in range(rounds + 1)][1:]
    own = statistics.median(turn["model"] for turn in times)
    row = {"what": case.name, "batch": case.batch, "ms": 1e3 * own}
    for kind, other in RATIOS:
        if {kind, other} <= case.kinds.keys():
            row[f"{kind} / {other}"] = statistics.median(turn[kind] / turn[other] for turn in times)
    row["FLOPs, direct / model"] = direct_flops / case.flops
    floor = max(case.flops / rates[0], case.num_bytes / rates[1])
    row |= {"model / floor": own / floor, "utilisation": case.flops / rates[0] / own}
    return row | case.memory


def run(
    preset: Preset = "mini",
    device: Device = "cpu",
    batch: Rows = 8,
    rounds: Rounds = 5,
    threads: Processes = 1,
    compile: bool = True,
) -> list[dict[str, Any]]:
    """Rows: the device, then every case with time, ratios, utilisation of the measured matrix rate and memory kept.

    Without a compiler, or with `compile=False`, nothing is compiled, and a row says why. `saved_mb` is what a forward
    pass keeps for its backward pass, `saved_recomputed_mb` the same with every layer recomputed. UserError for a device
    that is not there.
    """
    check_device(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rates = device_rates(device, dtype)
    rows = [{"what": "matrix product, GFLOP/s", "rate": rates[0] / 1e9}, {"what": "copy, GB/s", "rate": rates[1] / 1e9}]
    why_not = "as asked for" if not compile else lacking_compiler()
    if why_not:
        rows.append({"what": f"nothing is compiled: {why_not}"})
    config = preset_config(preset)
    with torch.device(device):
        policy = HyVLAPolicy(config).to(dtype).eval()  # type: ignore[arg-type]
    rows += [measured(case, device, rounds, rates) for case in policy_cases(policy, batch, not why_not)]
    del policy
    with torch.device(device):
        vlm = HunYuanVLMoTForConditionalGeneration(vlm_config(config)).to(dtype).eval()  # type: ignore[arg-type]
    work = VLMWork(vlm, config, batch)
    rows += [measured(case, device, rounds, rates) for case in itertools.chain(work.training(), work.inference())]
    return rows
