"""How a model is asked for new instructions, and how its list is read.

Examples go out and instructions come back as a JSON list of strings: an instruction may then hold lines, numbered lists
and code, and a list that was cut off or chatted around cannot be taken for a whole one.
"""

import json
from collections.abc import Sequence

from chatsmith.collect.filters import Language

PER_REQUEST = 10
MOST = 10 * PER_REQUEST  # that a reply may hold: each is compared with all before it
_REQUESTS: dict[Language, str] = {
    "English": """\
You collect tasks for teaching an assistant that reads and writes text and does nothing else. Here are some of them, \
as a JSON list:

{examples}

Write {count} new tasks in English that people could give it.
- Every task stands by itself. Whatever it is about (a text, numbers, a table, code) is part of it, in full.
- No task needs pictures, sound, files, links or the web, and none leaves a blank to be filled in.
- They differ from those above and from each other: in subject, in verb, in kind (questions, orders, rewriting, \
sorting, reckoning, planning, inventing, code), in length and in difficulty.

Reply with a JSON list of {count} strings and nothing else.""",
    "Chinese": """\
请为训练一个只能读写文字的助手收集任务。下面是一些例子，写成 JSON 列表：

{examples}

请再写 {count} 个人们可能向它提出的新任务，用中文。
- 每个任务都能独立理解；任务涉及的内容（文章、数字、表格、代码）要完整地写在任务里。
- 不需要图片、声音、文件、链接或上网，也不留待填的空白。
- 与上面的例子不同，彼此也不同：题材、动词、类型（提问、改写、分类、计算、计划、创作、编程等）、长短、难易都要有变化。

只回复一个包含 {count} 个字符串的 JSON 列表，不要写别的内容。""",
}


def request(examples: Sequence[str], language: Language) -> str:
    """The message that asks for PER_REQUEST new instructions."""
    shown = json.dumps(list(examples), ensure_ascii=False, indent=1)
    return _REQUESTS[language].format(examples=shown, count=PER_REQUEST)


def read_list(text: str) -> list[str] | None:
    """The instructions of a reply; None if it is anything but a JSON list of strings, be it in a code fence."""
    try:
        items = json.loads(_unfenced(text.strip()))
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list) or len(items) > MOST or not all(isinstance(item, str) for item in items):
        return None
    return [item.strip() for item in items]


def _unfenced(text: str) -> str:
    """What stands between a first line "```" or "```json" and a last line "```"."""
    opening, _, rest = text.partition("\n")
    inside, _, closing = rest.rpartition("\n")
    is_fenced = opening.rstrip() in ("```", "```json") and closing.lstrip() == "```"
    return inside if is_fenced else text
