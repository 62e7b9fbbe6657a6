"""Sparse autoencoders: SAELens' own modules and losses, trained by the one trainer, and saved as SAELens saves them.

    l1         `‖y − ŷ‖² + λ Σ f_i ‖W_dec,i‖`
    topk       `‖y − ŷ‖²`, the k greatest features; those that are dead are taught what is left of y (Gao et al., 2024)
    batchtopk  the same with the b k greatest of a batch of b (Bussmann et al., 2024); afterwards, those above a
               threshold, the running mean of the smallest that was active in a batch
    jumprelu   `‖y − ŷ‖² + λ ‖f‖₀`, with a threshold for each feature and straight-through gradients (Rajamanoharan et
               al., 2024)

Here `y = s x`, with s such that `s (x − x̄)` has a mean squared norm of d: λ means the same at any site.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from probekit import UsageError
from probekit_plugins.autoencoder.modules import Autoencoder
from probekit_plugins.autoencoder.sparse_format import (
    CONFIG_FILE,
    WEIGHT_FILE,
    Codec,
    SavedSparse,
    read_sparse,
    sae_lens,
)

if TYPE_CHECKING:
    from probekit_plugins.trainer import Step
    from probekit_plugins.training_options import TrainingOptions

__all__ = ["SavedSparse", "Sparse", "read_sparse"]

# SAELens' name for each.
KINDS = {"l1": "Standard", "topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU"}
# Share of the training in which a penalty rises to λ: at once, it would silence features that know nothing yet.
PENALTY_WARMUP = 0.05
# A feature is dead that is not active for this share of the training, and for so many steps. SAELens' own window of
# 1000 steps never ends in a short training.
DEAD_SHARE, DEAD_STEPS = 0.1, 20
# Norm of a row of the decoder, and of a column of the encoder, at the beginning. With SAELens' own 0.1, TopK and
# BatchTopK find fewer true features; with 1, TopK explains less of a model's activations.
DECODER_NORM = 0.5
# JumpReLU's thresholds at the beginning, and the width ε of the window that their gradients come from, in units of √λ:
# it is worth its penalty to keep what is above √λ. Adam moves a threshold by no more than η in a step, so that from
# SAELens' 0.01 it does not get there in a short training.
THRESHOLD = 0.5
# The running mean of BatchTopK's threshold looks back over this share of the training.
THRESHOLD_SHARE = 0.05


class Sparse(Autoencoder):
    """A sparse autoencoder of `features` features, trained with the losses above.

    `sparsity` is the k of topk and batchtopk, and the penalty λ of l1 and jumprelu. The weights are those of the seed;
    torch's own random numbers stay as they are. What is encoded and decoded is what the saved files encode and decode:
    activations as they are, batchtopk by its threshold.

    Raises UsageError if SAELens is not installed, or if k is not a whole number from 1 to `features`.
    """

    scale: torch.Tensor
    passes: torch.Tensor

    def __init__(
        self, variant: str, width: int, features: int, sparsity: float, options: TrainingOptions, seed: int
    ) -> None:
        super().__init__()
        if variant in ("topk", "batchtopk") and not (sparsity == int(sparsity) and 1 <= sparsity <= features):
            raise UsageError(
                f"The variant '{variant}' has {sparsity:g} of {features} features active; expected a whole number from "
                f"1 to {features}. Give fewer (-o active=4), or more features (-o features=…)."
            )
        package = sae_lens(f"The variant '{variant}'", ", or choose a variant that is not sparse")
        threshold = THRESHOLD * sparsity**0.5
        own: dict[str, dict[str, Any]] = {
            "topk": {"k": int(sparsity)},
            "jumprelu": {"jumprelu_init_threshold": threshold, "jumprelu_bandwidth": threshold},
            "batchtopk": {
                "k": int(sparsity),
                "topk_threshold_lr": min(0.5, max(0.01, 1 / (THRESHOLD_SHARE * options.steps))),
            },
        }
        kind = f"{KINDS[variant]}TrainingSAE"
        config = getattr(package, f"{kind}Config")(
            d_in=width, d_sae=features, decoder_init_norm=DECODER_NORM, **own.get(variant, {})
        )
        with torch.random.fork_rng(devices=[]):  # SAELens draws from the generator that everyone shares
            torch.default_generator.manual_seed(seed)
            self.sae = getattr(package, kind)(config)
        self._step = package.saes.sae.TrainStepInput
        self.variant, self.width, self.features, self.sparsity = variant, width, features, sparsity
        self.window = max(DEAD_STEPS, int(DEAD_SHARE * options.steps))
        self.register_buffer("scale", torch.ones(()))
        # Steps since a feature was active: with the threshold, which is a buffer of SAELens', all that a resumed
        # training follows from beside the parameters.
        self.register_buffer("passes", torch.zeros(features))

    def prepare(self, examples: torch.Tensor) -> None:
        """Take s from the examples, and the decoder's bias: their mean."""
        rows = examples.flatten(0, 1).double()
        mean = rows.mean(0)
        norm = (rows - mean).square().sum(-1).mean().sqrt()
        self.scale.fill_(self.width**0.5 / norm if norm > 0 else 1.0)
        with torch.no_grad():
            self.sae.b_dec.copy_(mean * self.scale.to(mean))

    def loss(self, examples: torch.Tensor, step: Step) -> torch.Tensor:
        """The variant's loss, in which a reconstruction by the mean costs d.

        Its gradients are so great that the trainer clips most, which keeps Adam's steps as long when the loss falls:
        divided by d, every variant finds as many true features or somewhat fewer.
        """
        penalty = self.sparsity * min(1.0, step.share / PENALTY_WARMUP)
        found = self.sae.training_forward_pass(
            self._step(
                sae_in=examples.flatten(0, 1) * self.scale,
                coefficients={"l1": penalty, "l0": penalty},  # each variant takes its own, or none
                dead_neuron_mask=self.passes > self.window,
                n_training_steps=step.number,
                is_logging_step=False,
            )
        )
        active = (found.feature_acts.detach() > 0).any(0)
        self.passes.copy_(torch.where(active, 0.0, self.passes + 1))
        loss: torch.Tensor = found.loss
        return loss

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.inference().encode(x)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.inference().decode(codes)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return self.inference().reconstruct(x)

    def inference(self) -> SavedSparse:
        """What would be read from the files if they were written now, without writing them."""
        folded = self._folded()
        tensors = {name: tensor.detach() for name, tensor in folded.state_dict().items()}
        folded.process_state_dict_for_saving_inference(tensors)
        config = folded.cfg.get_inference_sae_cfg_dict()
        return SavedSparse(Codec(config, tensors), self.width, self.features, config)

    def files(self, metadata: Mapping[str, Any]) -> dict[str, bytes]:
        """`cfg.json` and `sae_weights.safetensors`, as SAELens writes a model to encode with and as it reads one.

        The scale is folded into the weights. `metadata` goes into the `cfg.json`, where `model` and `site` are also
        what SAELens calls the model's and the hook's name. The same training gives the same bytes.
        """
        folded = self._folded().to("cpu")
        names = {"model_name": metadata.get("model"), "hook_name": metadata.get("site"), **metadata}
        for name, value in names.items():
            folded.cfg.metadata[name] = value
        with tempfile.TemporaryDirectory() as folder:
            folded.save_inference_model(folder)
            config, weights = ((Path(folder) / name).read_bytes() for name in (CONFIG_FILE, WEIGHT_FILE))
        # SAELens writes it in the order of a set of strings, which is another in each process.
        ordered = json.dumps(json.loads(config), indent=1, sort_keys=True, allow_nan=False) + "\n"
        return {CONFIG_FILE: ordered.encode(), WEIGHT_FILE: weights}

    def _folded(self) -> Any:
        """A copy of SAELens' module that takes activations as they are."""
        folded = copy.deepcopy(self.sae)
        folded.fold_activation_norm_scaling_factor(float(self.scale))
        return folded
