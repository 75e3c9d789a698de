"""sea-bake report"""

from __future__ import annotations

from sea_bake.cli.options import Call, command, spelt


@command("sea_bake.reporting:report", layers=spelt("--layers"), activations=spelt("--activations", "-a"))
def report(call: Call) -> None:
    """Draw one HTML page about an edit: spectra, movement, gain and cost, verdict, answers.

    Without --model nothing is run, and it takes seconds: what is there is read, and a section whose data is not there
    says which command would supply it. With --model the base is loaded for what is lacking (about as long as the fit
    took). The page needs no network and no JavaScript. Examples:

      sea-bake report truthful.safetensors -a activations.safetensors -o truthful-report

      sea-bake report smollm2-truthful --model HuggingFaceTB/SmolLM2-135M-Instruct --write
    """
    console, output = call.console, call["output"]
    made = call.run()
    for path in made.written:
        console.print(f"wrote {path}", markup=False)
    if output is not None:
        console.print(f"look at it: {output / 'report.html'}", markup=False)
