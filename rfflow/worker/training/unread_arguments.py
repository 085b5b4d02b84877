"""Tables of the trainers' arguments that nobody would read, for :mod:`rfflow.worker.training.answered_arguments`."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

WHERE = "trainer.args"

_ONE_DEVICE = "A run of rfflow trains on one device, in one process that others share. Leave it out."

NEVER: Mapping[str, str] = types.MappingProxyType(
    {
        "deepspeed": _ONE_DEVICE,
        "fsdp": _ONE_DEVICE,
        "fsdp_config": _ONE_DEVICE,
        "parallelism_config": _ONE_DEVICE,
        "ddp_backend": _ONE_DEVICE,
        "local_rank": f"{_ONE_DEVICE} Which of several GPUs it is says engine.device.",
        "vllm_tensor_parallel_size": _ONE_DEVICE,
        "auto_find_batch_size": (
            "It begins training again with a smaller batch whenever memory is short, which depends on what the other "
            "runs hold. Give trainer.args.per_device_train_batch_size, or sweep it: a run that fails takes nobody "
            "with it."
        ),
        "bf16_full_eval": "It counts only in evaluations outside training, and rfflow's are inside. Leave it out.",
        "fp16_full_eval": "It counts only in evaluations outside training, and rfflow's are inside. Leave it out.",
        "dataloader_in_order": "Batches would come in another order every time. Leave it out.",
        "do_predict": (
            "rfflow predicts nothing when training has ended. Answers are written at the end of every chunk with "
            "evaluation.generate.samples=...; afterwards load what lies in checkpoints/final."
        ),
        "enable_jit_checkpoint": "rfflow itself saves when it is sent a SIGTERM (checkpoint.grace). Leave it out.",
        "ignore_data_skip": (
            "A run that goes on (rfflow resume=...) does so behind the very row where it stood, not on rows that it "
            "has seen. Leave it out."
        ),
        "restore_callback_states_from_checkpoint": (
            "What callbacks have counted is kept and restored by rfflow's own checkpoints. Leave it out."
        ),
        "resume_from_checkpoint": (
            "transformers leaves it to scripts to read. To go on with an experiment: rfflow resume=outputs/...; to "
            "begin with the weights of one of its runs: rfflow ctl clone --warm-start; with others: "
            "model.name=<folder>."
        ),
        "skip_memory_metrics": (
            "The figures would be those of the process, in which all runs stand. Leave it out; status.yaml says what "
            "each run holds."
        ),
    }
)
"""Arguments that are answered whenever they say anything else than their default."""

BREAKING = (
    *("auto_find_batch_size", "deepspeed", "enable_jit_checkpoint", "ignore_data_skip", "parallelism_config"),
    *("restore_callback_states_from_checkpoint", "skip_memory_metrics"),
)
"""Those of them that a trainer cannot have either that a user's own script has built."""

GONE: Mapping[str, str] = types.MappingProxyType(
    {
        "dataset_batch_size": "TRL has it no more. Leave it out.",
        "evaluation_strategy": "It is called eval_strategy now.",
        "fp16_backend": "transformers has it no more. Leave it out.",
        "generate_during_eval": "rfflow answers rows at the end of every chunk with evaluation.generate.samples=...",
        "group_by_length": "It is trainer.args.train_sampling_strategy=group_by_length now.",
        "half_precision_backend": "transformers has it no more. Leave it out.",
        "include_tokens_per_second": "transformers has it no more; see trainer.args.include_num_input_tokens_seen.",
        "jit_mode_eval": "transformers has it no more. Leave it out.",
        "logging_dir": "The curves of all runs lie in the experiment's tb/; other loggers go in the section loggers.",
        "max_prompt_length": "TRL has it no more: shorten the prompts by a dataset.formatting_func.",
        "max_seq_length": "It is called max_length now.",
        "model_adapter_name": "TRL has it no more; the adapter is the section peft.",
        "no_cuda": "What runs train on says engine.accelerator=cpu.",
        "overwrite_output_dir": "transformers has it no more: every experiment has a directory of its own.",
        "past_index": "transformers has it no more. Leave it out.",
        "per_gpu_eval_batch_size": "It is called per_device_eval_batch_size now.",
        "per_gpu_train_batch_size": "It is called per_device_train_batch_size now.",
        "push_to_hub_model_id": "It is called hub_model_id now.",
        "ray_scope": "transformers has it no more. Leave it out.",
        "ref_adapter_name": "TRL has it no more: a run compares with its base, or with trainer.ref_model.name=...",
        "save_safetensors": "transformers has it no more: everything is saved so.",
        "torchdynamo": "It is trainer.args.torch_compile=true now.",
        "tpu_metrics_debug": "It is trainer.args.debug=tpu_metrics_debug now, for a TPU.",
        "tpu_num_cores": "transformers has it no more. Leave it out.",
        "use_ipex": "transformers has it no more. Leave it out.",
        "use_legacy_prediction_loop": "transformers has it no more. Leave it out.",
        "use_mps_device": "What runs train on says engine.accelerator=mps.",
        "vllm_device": "TRL has it no more: trainer.args.vllm_mode=colocate generates where the run trains.",
        "warmup_ratio": "It is trainer.args.warmup_steps now, which takes a share of all steps too, such as 0.03.",
    }
)
"""Arguments that transformers or TRL had once, which people still find in scripts, and what to say now."""


_SAVES = ("steps", "epoch", "best")
_ITS_OWN_EVALUATIONS = ("steps", "epoch")

ONLY_WITH: Mapping[str, tuple[str, tuple[Any, ...]]] = types.MappingProxyType(
    {
        "activation_checkpointing_kwargs": ("activation_checkpointing gradient_checkpointing", (True, "auto")),
        "gradient_checkpointing_kwargs": ("activation_checkpointing gradient_checkpointing", (True, "auto")),
        "dataloader_multiprocessing_context": ("dataloader_num_workers", ("more than 0",)),
        "dataloader_persistent_workers": ("dataloader_num_workers", ("more than 0",)),
        "dataloader_prefetch_factor": ("dataloader_num_workers", ("more than 0",)),
        "eval_delay": ("eval_strategy", _ITS_OWN_EVALUATIONS),
        "eval_steps": ("eval_strategy", ("steps",)),
        "greater_is_better": ("eval_strategy", _ITS_OWN_EVALUATIONS),
        "metric_for_best_model": ("eval_strategy", _ITS_OWN_EVALUATIONS),
        "load_best_model_at_end": ("eval_strategy", _ITS_OWN_EVALUATIONS),
        "save_only_model": ("save_strategy", _SAVES),
        "save_steps": ("save_strategy", ("steps",)),
        "save_total_limit": ("save_strategy", _SAVES),
        "hub_always_push": ("push_to_hub", (True,)),
        "hub_model_id": ("push_to_hub", (True,)),
        "hub_private_repo": ("push_to_hub", (True,)),
        "hub_revision": ("push_to_hub", (True,)),
        "hub_strategy": ("push_to_hub", (True,)),
        "length_column_name": ("train_sampling_strategy", ("group_by_length", "batch_rebalance")),
        "liger_kernel_config": ("use_liger_kernel", (True,)),
        "project": ("report_to", ("trackio",)),
        "trackio_bucket_id": ("report_to", ("trackio",)),
        "trackio_space_id": ("report_to", ("trackio",)),
        "trackio_static_space_id": ("report_to", ("trackio",)),
        # TRL's own
        "discopop_tau": ("loss_type", ("discopop",)),
        "f_alpha_divergence_coef": ("f_divergence_type", ("alpha_divergence",)),
        "label_smoothing": ("loss_type", ("exo_pair", "robust", "aot", "aot_unpaired")),
        "packing_strategy": ("packing eval_packing", (True,)),
        "precompute_ref_batch_size": ("precompute_ref_log_probs", (True,)),
        "ref_model_mixup_alpha": ("sync_ref_model", (True,)),
        "ref_model_sync_steps": ("sync_ref_model", (True,)),
        "entropy_coef_delta": ("use_adaptive_entropy", (True,)),
        "entropy_coef_max": ("use_adaptive_entropy", (True,)),
        "entropy_coef_min": ("use_adaptive_entropy", (True,)),
        "entropy_target": ("use_adaptive_entropy", (True,)),
        "log_completions_hub_repo": ("log_completions", (True,)),
        "log_multimodal": ("log_completions", (True,)),
        "log_unique_prompts": ("log_completions", (True,)),
        "num_completions_to_print": ("log_completions", (True,)),
        "sapo_temperature_neg": ("loss_type", ("sapo",)),
        "sapo_temperature_pos": ("loss_type", ("sapo",)),
        "transformers_continuous_batching_config": ("use_transformers_continuous_batching", (True,)),
        "vespo_k_neg": ("loss_type", ("vespo",)),
        "vespo_k_pos": ("loss_type", ("vespo",)),
        "vespo_lambda_neg": ("loss_type", ("vespo",)),
        "vespo_lambda_pos": ("loss_type", ("vespo",)),
        "vllm_enable_sleep_mode": ("vllm_mode", ("colocate",)),
        "vllm_gpu_memory_utilization": ("vllm_mode", ("colocate",)),
        "vllm_max_model_length": ("vllm_mode", ("colocate",)),
        "vllm_group_port": ("vllm_mode", ("server",)),
        "vllm_server_base_url": ("vllm_mode", ("server",)),
        "vllm_server_host": ("vllm_mode", ("server",)),
        "vllm_server_port": ("vllm_mode", ("server",)),
        "vllm_server_timeout": ("vllm_mode", ("server",)),
    }
)
"""Arguments that the libraries read only where another one, or one of others, has one of these values, and pass over
elsewhere."""

INSTEAD: Mapping[str, str] = types.MappingProxyType(
    {
        "eval_strategy": "rfflow itself evaluates at the end of every chunk (evaluate), and ranks by objective.metric.",
        "save_strategy": "rfflow itself saves at the end of every chunk (checkpoint.every, checkpoint.keep).",
    }
)

# The optimizers whose makers in transformers look at optim_args, by how their names begin.
WITH_OPTIM_ARGS = (
    *("ademamix", "paged_ademamix", "adamw_anyprecision", "sgd", "adagrad", "rmsprop", "galore", "apollo", "grokadamw"),
    *("stable_adamw", "schedule_free", "adamw_torch_4bit", "adamw_torch_8bit"),
)
WITH_OPTIM_TARGETS = ("galore", "apollo")
OPTIM_ARGS: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {
        "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
        "adagrad": ("lr_decay", "weight_decay", "eps"),
        "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
    }
)
"""What transformers reads of the optim_args of these; it passes over all else."""
