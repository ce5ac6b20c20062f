"""Tokenizers over bytes, with chat templates of several families of models."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Like DeepSeek-R1's distillations: nothing of ChatML, the template opens the thinking, and drops that of earlier turns.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% else %}{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
# Like QwQ: ChatML whose template opens the thinking.
QWQ = CHATML.replace("assistant\\n", "assistant\\n<think>\\n")
# Like Qwen3: the model opens the thinking itself; the template writes an empty block into an answer without one.
QWEN3 = CHATML.replace(
    "m['content']", "('<think>\\n\\n</think>\\n\\n' if m['role'] == 'assistant' else '') + m['content']"
)
# Like OpenThinker: the system prompt tells which tags to use.
OPENTHINKER = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nThink between <|begin_of_thought|> and "
    "<|end_of_thought|>.<|im_end|>\\n' }}{% endif %}" + CHATML
)
# Like Llama 2: no added token around a question; the system prompt stands in the user's turn.
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ '[INST] <<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' }}"
    "{% elif m['role'] == 'user' %}{{ ('[INST] ' if loop.first else '') + (m['content'] | trim) + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TAGS = ("<think>", "</think>")


def byte_tokenizer(specials=SPECIALS, template: str | None = CHATML, ordinary=(), **kwargs) -> PreTrainedTokenizerFast:
    """One token per byte, then the special tokens, then added tokens that are not special."""
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    backend.add_tokens(list(ordinary))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **kwargs)
    tokenizer.chat_template = template
    return tokenizer


def r1_tokenizer() -> PreTrainedTokenizerFast:
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    ordinary = ("<｜User｜>", "<｜Assistant｜>", *TAGS)
    return byte_tokenizer((begin, end), R1, ordinary, bos_token=begin, eos_token=end, pad_token=end)


def qwq_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(template=QWQ, ordinary=TAGS, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def qwen3_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(template=QWEN3, ordinary=TAGS, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def openthinker_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(template=OPENTHINKER, eos_token="<|im_end|>")


def llama2_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(("<s>", "</s>"), LLAMA2, bos_token="<s>", eos_token="</s>")
