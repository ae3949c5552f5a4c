"""Members and families of the tiny models, written as a build writes them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import torch
from torch import Tensor

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import decompose
from hf_merge.merging.grouping import Grouping
from hf_merge.merging.methods import MethodSpec
from hf_merge.modeling.assembly import Head, skeleton_config
from hf_merge.modeling.features import ALL_LAYERS, FeatureExtractor
from hf_merge.modeling.inputs import image_batches, load_image_processor, load_tokenizer, text_batches
from hf_merge.searching.evaluation import ExpertBuilder
from hf_merge.serving.router import RouterSettings, fit
from hf_merge.serving.router_file import router_tensors
from hf_merge.storing import front as fronts
from hf_merge.storing.chains import BaseRef, ChainMap, ComponentEntry, ModelEntry
from hf_merge.storing.checkpoints import Family
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.library import MemberContent, StoredHead, write_member
from hf_merge.storing.tensors import tensor_bytes
from tests.modeling.test_assembly import opened
from tests.tiny_models import TinyFamily, read_rows


MERGED, SEPARATE = ((0, 0, 0),) * 4, ((0, 1, 2),) * 4
MIXED = ((0, 0, 1), (0, 0, 0), (0, 1, 2), (0, 1, 0))
# Two tasks share every expert.
SHARED = ((0, 0, 1),) * 4


def builder_of(family: Family, codec: str = "int8") -> ExpertBuilder:
    components = decompose(family.shapes, "type")
    method, coded = MethodSpec.resolve("task_arithmetic"), CodecSpec.resolve(codec)
    return ExpertBuilder(family, components, method, coded, limit_bytes=10**9)
