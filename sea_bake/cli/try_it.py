"""sea-bake ask, sea-bake chat, sea-bake serve, sea-bake doctor"""

from __future__ import annotations

import sys
from typing import Any

import typer
from rich.markup import escape

from sea_bake.cli.options import FORMAT, PROMPTS, Call, command, spelt
from sea_bake.cli.printing import table
from sea_bake.pages.text import harmless
from sea_bake.serving.sampling import at_terminal, piped

_SAMPLING = {"Answers": "alpha max_new_tokens temperature seed", "Prompts": PROMPTS}


def _format(call: Call) -> Any:
    """How prompts are rendered, where the command line says anything of it; else the edits' own way counts."""
    call(verb="sea_bake.serving.sampling:check_there")  # no refusal of it waits for torch, which this needs
    form = call(verb=FORMAT)
    return None if form == type(form)() else form


@command(
    FORMAT,
    "sea_bake.serving.asking:ask",
    without="prompt_format hear",
    panels=_SAMPLING,
    prompts=spelt("-p", positional=False, parse=piped),
)
def ask(call: Call) -> None:
    """Ask base and edited model the same question, and show both answers side by side.

    Examples:

      sea-bake ask HuggingFaceTB/SmolLM2-135M-Instruct --edit truthful.safetensors -p "Can bats see?"

      sea-bake ask smollm2-truthful -p "Can bats see?" -p "Is the sun a star?" --json

      cat question.txt | sea-bake ask smollm2-truthful -p -
    """
    found = call.run(prompt_format=_format(call))
    for turn in found.turns:
        if call.console.quiet and not call.as_json:
            print(*(harmless(reply.text) for reply in turn.replies.values()), sep="\n")
        cells = [escape(reply.text) for reply in turn.replies.values()]
        head = list(turn.replies)
        call.console.print(table(head, [cells], left=head, title=escape(turn.prompt), show_lines=True, expand=True))
    if found.lacking:
        call.console.print(found.lacking, style="dim", markup=False)


@command(FORMAT, "sea_bake.serving.chatting:chat", without="prompt_format read write", panels=_SAMPLING)
def chat(call: Call) -> None:
    """Chat with base and edited model, side by side or with one of them; commands begin with / (/help).

    Lines of a pipe are prompts and commands too (exit code 2 where one is refused). --json prints the conversation at
    the end, and nothing else. Examples:

      sea-bake chat HuggingFaceTB/SmolLM2-135M-Instruct --edit truthful.safetensors
    """
    silent = {"write": lambda text: None} if call.as_json else {}
    if call.run(prompt_format=_format(call), **silent).refused and not at_terminal():
        raise typer.Exit(2)


@command("sea_bake.serving.server:serve", without="ready", allowed_hosts=spelt("--allow-host", metavar="NAME"))
def serve(call: Call) -> None:
    """Serve base and edited model as OpenAI does, on this machine alone, until Ctrl-C.

    Model names are base and edited. The server is vLLM where it is on the PATH, else transformers' own (extra
    serve), where a request for edited may hold alpha, if the edit is live or inserted. Example:

      sea-bake serve HuggingFaceTB/SmolLM2-135M-Instruct --edit truthful.safetensors
    """

    def ready(facts: dict[str, Any]) -> None:
        call.emit(facts)
        names = " and ".join(facts["models"])
        call.console.print(f"{names} at {facts['url']} ({facts['server']}; Ctrl-C ends it)", markup=False)
        sys.stdout.flush()

    call(ready=ready)


@command("sea_bake.serving.doctor:doctor")
def doctor(call: Call) -> None:
    """Say what is installed and what works on this machine, and how to mend what does not.

    Exit code 1 when sea-bake itself lacks something.
    """
    health = call.run()
    call.console.print("\n".join(health.lines()), markup=False, soft_wrap=True)
    if not health.healthy:
        raise typer.Exit(1)
