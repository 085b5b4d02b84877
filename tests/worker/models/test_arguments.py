"""What from_pretrained would pass over, or takes for something that a configuration has not, is answered."""

from __future__ import annotations

from typing import Any

import pytest

from rfflow.errors import ConfigError
from rfflow.worker.models.arguments import check_model_arguments


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"output_loading_info": True}, "model.output_loading_info is not a setting: It is rfflow that loads"),
        ({"config": "folder"}, "fields of its config can be set here by their own names"),
        ({"tp_plan": "auto"}, "A model stands whole on one device"),
        ({"distributed_config": {"tp_size": 2}}, "A model stands whole on one device"),
        ({"load_in_4bit": True}, "Choose model=qlora"),
        ({"low_cpu_mem_usage": True}, "takes it and passes over it"),
        ({"torch_dtype": "bfloat16"}, "transformers calls it dtype (model.dtype=bfloat16)"),
        ({"use_auth_token": "x"}, "transformers calls it token"),
        ({"use_fast": False}, "It is the tokenizer's"),
        ({"max_memory": {0: "1GB"}}, "read only beside model.device_map"),
        ({"offload_folder": "x"}, "read only beside model.device_map"),
        ({"dtype": "bloat16"}, "Did you mean 'bfloat16' or 'float16'? Allowed"),
    ],
)
def test_an_argument_that_nobody_would_read_is_answered(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_model_arguments(given)
    assert said in str(error.value)


def test_what_is_read_passes() -> None:
    check_model_arguments({"dtype": "bfloat16", "use_cache": False, "max_memory": {0: "1GB"}, "device_map": "cpu"})
    check_model_arguments({"low_cpu_mem_usage": None})
