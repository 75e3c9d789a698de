"""Text that no edit is about, to see what an edit does to it: written for this project, plain and factual."""

from __future__ import annotations

TEXTS = (
    "The workshop opens at eight. Before anything else the saws are checked, the floor is swept, and the wood for the "
    "day is brought in from the shed, where it has dried for two summers. Oak is stacked to the left and pine to the "
    "right. By nine the first boards are planed, and the room smells of resin.",
    "To make the dough, mix flour, water, salt and a little yeast in a wide bowl, and leave it under a cloth until it "
    "has doubled. Fold it twice. Shape it into a round loaf, cut the top with a sharp knife, and bake it in a hot oven "
    "for forty minutes. Let the bread cool on a rack before you slice it.",
    "The river rises in the hills north of the town, passes under three stone bridges and turns east towards the sea. "
    "In spring, when the snow melts, it floods the meadows on its left bank. Farmers there keep their cattle on the "
    "higher fields until May, and hay is cut twice a year.",
    "She took the early train because it was cheaper, found a seat by the window and read for most of the way. At the "
    "border two officers walked through the carriages and looked at the passports. It rained until noon. When she "
    "arrived, her brother was waiting on the platform with an umbrella and a bag of cherries.",
    "A function that calls itself is called recursive. It needs a case that it can answer at once, or it would never "
    "end, and every other case must lead closer to that one. Sorting a list this way is easy to describe: split it in "
    "two halves, sort each of them, and merge the results.",
    "The committee met on Tuesday to discuss the new library. Two plans were on the table. The first keeps the old "
    "building and adds a reading room behind it; the second moves everything to the market square. Both cost about the "
    "same. A decision was put off until the engineers have looked at the roof.",
    "Bees leave the hive when the morning is warm enough. A forager that has found flowers returns and dances on the "
    "comb, and the angle of her dance tells the others the direction. Most of them fly less than two kilometres. In "
    "autumn the colony shrinks, and in winter it keeps itself warm in a tight cluster.",
    "The second movement begins quietly, with the strings alone. After sixteen bars the clarinet takes over the melody "
    "and the cellos answer it. There is a short pause, then the whole orchestra repeats the theme, louder and a little "
    "faster. The movement ends as it began, and the last note is held for a long time.",
    "Rent is due on the first day of each month. The tenant keeps the flat in good order, reports any damage without "
    "delay and does not sublet it without consent. Heating is included, electricity is not. Either side may end the "
    "contract with three months' notice in writing.",
    "Glass is made from sand, soda and lime, which melt together at about fifteen hundred degrees. The glowing mass is "
    "drawn, pressed or blown into shape and then cooled slowly, since glass that cools too fast is full of stress and "
    "breaks at a touch. A trace of iron makes it green, cobalt makes it blue.",
    "It was the last match of the season and the stands were full. The visitors scored after ten minutes and then "
    "defended. Shortly before the break the home side had a free kick from twenty metres, and the ball went in off the "
    "post. The second half brought chances for both, but no more goals.",
    "Put the battery in with the plus sign facing up and close the cover. Press the button for three seconds until the "
    "light blinks. Open the settings of your phone, choose the new device from the list and type the code that is "
    "printed on the back. If the light stays red, start again from the beginning.",
)

PROMPTS = (
    "Describe a walk through a forest in autumn.",
    "Explain how a bicycle stays upright.",
    "Write a short letter that invites a friend to dinner.",
    "What should I pack for a weekend in the mountains?",
    "Tell a short story about a lighthouse keeper.",
    "How do I remove a coffee stain from a shirt?",
    "Give three tips for learning a new language.",
    "Describe the taste of an orange.",
    "What happens at a football match?",
    "Explain what a loop is in a computer program.",
    "Write a paragraph about the sea.",
    "How is cheese made?",
)
