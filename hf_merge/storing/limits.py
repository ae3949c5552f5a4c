"""Every limit on what comes from outside, in one place; each is checked before anything of that size is allocated."""

from dataclasses import dataclass


KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Limits:
    """How large what comes from outside may be. A limit is far above anything honest and far below what would hurt.

    Attributes:
        chain_map_bytes: Bytes of `chains.json`; 64 tasks at 100 components take about 1 MiB.
        front_bytes: Bytes of `front.json` or `report.json`; a point of 64 tasks at 100 components takes about 80 KiB,
            and a long search ends with hundreds.
        config_bytes: Bytes of a `config.json` or another settings file; real ones take a few KiB.
        card_bytes: Bytes of a `README.md`; the Hub shows no more.
        tokenizer_bytes: Bytes of one tokenizer file; the largest vocabularies in use take about 35 MiB.
        index_bytes: Bytes of a checkpoint's `model.safetensors.index.json`; 300,000 tensors take about 30 MiB.
        header_bytes: Bytes of one safetensors header; 10,000 tensors take about 2 MiB (the library allows 100 MB).
        sound_bytes: Bytes of one WAV file; two hours at 16 kHz take 220 MiB, what is classified lasts seconds.
        json_depth: Levels of nested JSON; our own files need 5, configurations of transformers fewer than 10.
        tensors_per_file: Tensors in one safetensors file; the largest experts in use hold a few thousand.
        dimensions: Dimensions of a tensor; convolutions over video, the deepest in use, need 5.
        tensor_elements: Elements of one tensor, an empty dimension counted as 1, so that no stride overflows 64 bits.
        journal_line_bytes: Bytes of one record of a run's journal; an evaluation takes a few KiB.
        name_characters: Characters of an identifier or of a file name; every file system takes 128.
        tensor_name_characters: Characters of a tensor's name; deep multimodal models reach about 120.
        stored_name_characters: Characters of a tensor's name in a file; ours put the expert's id before it.
        text_characters: Characters of a free text such as a label; it is shown to people.
        labels: Labels of one task; the largest public label sets hold about 20,000.
        components: Components of a configuration; 200 blocks of four types take 800.
        experts: Experts of a configuration; one per component and task at most.
        chains: Tasks of a configuration; a recipe takes 64.
        files: Files of a repository; more would make listing it slow.
    """

    chain_map_bytes: int = 4 * MIB
    front_bytes: int = 64 * MIB
    config_bytes: int = 1 * MIB
    card_bytes: int = 1 * MIB
    tokenizer_bytes: int = 64 * MIB
    index_bytes: int = 32 * MIB
    header_bytes: int = 4 * MIB
    sound_bytes: int = 256 * MIB
    json_depth: int = 16
    tensors_per_file: int = 10_000
    dimensions: int = 8
    tensor_elements: int = 1 << 48
    journal_line_bytes: int = 16 * MIB
    name_characters: int = 128
    tensor_name_characters: int = 512
    stored_name_characters: int = 1 * KIB
    text_characters: int = 1 * KIB
    labels: int = 65_536
    components: int = 16_384
    experts: int = 65_536
    chains: int = 4_096
    files: int = 10_000


LIMITS = Limits()
