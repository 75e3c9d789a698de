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
    "Water boils at a lower temperature in the mountains than at the coast, since there is less air above it. "
    "Potatoes therefore take longer to cook in a hut at three thousand metres, unless the pot has a lid that "
    "closes tightly.",
    "Dear neighbour, we shall be away from the third to the tenth of August. Could you water the tomatoes every "
    "second evening and put the post on the kitchen table? The key hangs where it always does. Many thanks, and "
    "help yourself to the beans.",
    "The ledger of the mill lists every sack from 1843 on: who brought it, what it weighed, and the share that the "
    "miller kept. In wet years the entries stop in March and begin again in May.",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / "
    "len(values)\n\nThe function fails on an empty list, so the caller has to check that first.",
    "Turn left at the chemist, cross the tram lines and walk up the stairs beside the theatre. The office is on "
    "the second floor, behind the glass door. It closes at half past four on Fridays.",
    "Whales breathe air and have to come up for it. A sperm whale may stay below for more than an hour, slow its "
    "heart, and dive to depths where no light falls. It finds squid there by listening for the echo of its own "
    "clicks.",
    '"You are late," said the old man without looking up. "The bridge was closed," she answered, and hung her wet '
    "coat over the chair. He pushed the bread towards her. For a while nobody spoke.",
    "Interest is paid at the end of each quarter on the lowest balance of that quarter. Withdrawals of more than "
    "five thousand need notice of a month. The bank may change the rate, and tells its customers six weeks before "
    "it does.",
    "Yeast eats sugar and gives off gas and alcohol. In dough the gas is what counts, and in a barrel the alcohol. "
    "Too much warmth kills it, and in the cold it only sleeps, which is why a dough can wait overnight in the "
    "fridge.",
    "Three rules held in the workshop: put the tool back where it was, measure twice, and never stand behind the "
    "saw. Apprentices learned them before they were allowed to touch anything.",
    "The train from platform six leaves at 17:42 and stops at every village on the line. The fast one, ten minutes "
    "later, overtakes it at the junction. Bicycles may travel in the last carriage, outside the rush hours.",
    "Snow had fallen all night, and the village was quiet. Smoke rose straight from the chimneys. A dog crossed "
    "the square, stopped, looked back at its own tracks and went on.",
    "A vote needs half of the members to be present. Motions are sent in writing, two weeks before the meeting, "
    "and the chair decides on their order. Where the votes are equal, the motion has failed.",
    "Saturn's rings are made of ice, from grains like dust to lumps as large as a house. They are very wide and "
    "hardly thicker than a street is long, so that from the side they almost vanish.",
    "Add the onions to the hot oil and stir until they are soft. Then come garlic, cumin and the lentils, and "
    "after a minute twice as much water as lentils. Salt is added last, when they are done.",
    "Maps of the old harbour show four basins, of which two have been filled in. A street now runs over the larger "
    "one, and in dry summers one can see from the cracks in the asphalt where its wall used to be.",
    "The questionnaire has twelve items. Each is answered on a scale from one to five, where five means full "
    "agreement. Items four and nine are turned around before the sum is taken. Most people need ten minutes for it.",
    "Cotton is picked, cleaned of its seeds and pressed into bales. In the mill it is combed until the fibres lie "
    "side by side, drawn out thinly and twisted. The finer the thread, the longer the fibres have to be.",
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
