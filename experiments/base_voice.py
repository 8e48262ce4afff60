"""Generates the corpus of the base voice: everyday English sentences from a small grammar, synthesized by flite.

    python -m experiments.base_voice FOLDER [--sentences 8000]

writes an LJ Speech folder (metadata.csv, wavs/), byte-identical for equal arguments. It needs the program flite, a
package of Debian; its voice slt was made from recordings of a woman (CMU ARCTIC). Then

    vits-trainer prepare_data --dataset FOLDER --output_dir FOLDER/training
    vits-trainer train_vits --config experiments/base_voice.yaml --data_dir FOLDER/training

trains the voice, and

    python -m experiments.packaged voice FOLDER/training/checkpoints/checkpoint-N

writes it to vits_trainer/voices/base_en, as fp16.

One sentence in four contains words from pocketsphinx's dictionary, to cover phoneme combinations that the grammar
lacks. The training sentences exclude :data:`TEST_SENTENCES`.
"""

import argparse
import calendar
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pocketsphinx

TEST_SENTENCES = """\
Good morning, how are you today?
The bus to the airport was late again.
Could you please open the window a little?
My brother works in a hospital near the river.
I would like a cup of coffee with milk.
We are going to visit our parents next weekend.
The weather will be warm and sunny tomorrow.
She forgot her phone on the kitchen table.
Please turn off the lights before you leave.
He bought three apples and a loaf of bread.
What time does the next train leave?
The children are playing football in the park.
I think we should take the other road.
Her new job starts on the first of June.
The shop on the corner closes at six.
They moved to a small house by the sea.
Can you help me carry these heavy boxes?
It was raining all night and the street is wet.
The doctor told him to drink more water.
I have never seen such a beautiful garden.
Let us meet in front of the library at noon.
The dog barked when the door opened.
My sister is learning to play the guitar.
There is nothing in the fridge but cheese.
We watched an old movie and went to bed early.
The teacher asked the class a difficult question.
Do you know where I can buy a ticket?
His car broke down on the way to work.
The soup needs more salt and pepper.
You can leave your coat in the hall.
The meeting has been moved to Thursday afternoon.
A young man was reading a book on the bench.
I will call you back in ten minutes.
The price of bread has gone up again.
They have two daughters and a son.
Please write your name at the top of the page.
The old clock on the wall stopped at midnight.
She speaks four languages and sings very well.
Nobody wanted to go home after the party.
The plane will land in about half an hour.
""".splitlines()

_PEOPLE = """\
I|you|we|they|he|she|my friend|the teacher|our neighbour|the young doctor|her mother|his father|the old man|
the girl next door|a stranger|the driver|the children|my cousin|the nurse|everyone|nobody|the students|the boss|
a tall woman|the shop owner|the baker|our guests|the captain|the police officer|the farmer|the tourists|
the singer|an engineer|the lawyer|your uncle|the judge|the waiter|the twins|the manager|Anna|David|Michael|
Sarah|Peter|Julia|Thomas|George|Emma|the whole team|the pilot|my grandmother|the football coach|the player|
the chief|the visitor|the crowd|the painter|the queen|somebody"""
_PAST = """\
bought found lost broke saw took left sold carried washed painted cleaned repaired remembered forgot opened
closed ordered borrowed brought cooked dropped finished hid kept needed noticed noted paid_for pushed returned
sent showed threw_away touched tried used wanted watched wrote_about looked_at talked_about asked_for
waited_for enjoyed hated measured changed chose collected counted covered described drew filled fixed followed
gathered guarded mentioned moved packed picked_up pulled put_down reached received recognized refused replaced
shared stole studied tasted thought_of understood visited wished_for"""
_THINGS = """\
book|red bicycle|letter|kitchen knife|cup of tea|picture|broken chair|window|green jacket|house|small boat|
newspaper|silver watch|box of matches|wooden table|pair of shoes|bottle of water|piece of cake|ticket|
yellow flower|phone|large garden|bridge|heavy suitcase|television|camera|fresh bread|glass of juice|pencil|
umbrella|blanket|bread and butter|orange|pile of paper|strange story|computer|message|guitar|piano|round mirror|
garage door|purple hat|vegetable soup|chocolate|old map|church|library|fishing rod|basket of cherries|hammer|
jewel|ladder|measuring cup|magazine|egg|onion|purse|question|razor|saucer|shovel|spoon|thick rope|toothbrush|
vase|whistle|zipper|leather belt|yoghurt|engine|treasure|quiet village|shower|judgement|job|choice|toy|voice|
noise|cow|mouse|brown towel|ear ring|chair near the fire|pure wool scarf|azure stone|usual measure|thin feather|
wreath"""
_WHERE = """\
in the garden|at the station|behind the house|near the river|on the table|under the bed|in the kitchen|
at school|by the sea|in front of the church|across the road|on the roof|at the market|in the mountains|
between two trees|in a small town|on the second floor|outside|upstairs|next to the bank|around the corner|
in the middle of the street|at home|in the office|on the way to work|beyond the bridge|inside the old theatre|
along the beach|down the hill|in the north of the country|at the airport|in the hospital|in a quiet room|
above the shop|over there|at the bottom of the stairs"""
_WHEN = """\
yesterday|this morning|last night|a week ago|on Monday|on Tuesday|on Wednesday|on Thursday|on Friday|
on Saturday|on Sunday|in January|in February|in March|in April|in May|in July|in August|in September|in October|
in November|in December|before breakfast|after lunch|during the summer|every day|two hours ago|at midnight|
just now|once more|in the evening|three years later|at the end of the month|for the first time|all winter|
this afternoon|tonight|again and again|very early"""
_FEELINGS = """\
tired|happy|angry|hungry|cold|very busy|quite sure|afraid|ill|late|early|ready|proud|curious|thirsty|surprised|
alone|kind|serious|bored|nervous|clever|famous|rich|poor|strong|quiet|lucky|wrong|right|worried|polite|lazy|
brave|cheerful"""
_ACTIONS = """\
go home|open the door|wait here|call a taxi|cook dinner|read the paper|take a walk|clean the house|
buy some milk|write to your mother|sing a song|ask a question|learn to swim|listen to music|drink some water|
pay the bill|catch the bus|wash the dishes|find the keys|close your eyes|fly to London|change the tyre|
feed the cat|plant a tree|catch a fish|sit down|stand up|hurry|think about it|sleep well|speak slowly|
choose a colour|join us|play chess|draw a horse|answer the phone|share the bread|push the button|watch the game|
measure the room|turn left|turn right|bring your friends|do the shopping"""
_WEATHER = """\
sunny|cloudy|windy|rainy|foggy|stormy|warm|freezing|dry|wet|cool|hot|mild|humid|bright|grey|beautiful|awful"""


def _choices(text: str) -> list[str]:
    return [part.strip().replace("_", " ") for part in text.replace("\n", "").split("|") if part.strip()]


PAST = [verb.replace("_", " ") for verb in _PAST.split()]
PEOPLE, THINGS, WHERE, WHEN, FEELINGS, ACTIONS, WEATHER = map(
    _choices, (_PEOPLE, _THINGS, _WHERE, _WHEN, _FEELINGS, _ACTIONS, _WEATHER)
)


@cache
def _dictionary() -> list[str]:
    path = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
    words = (line.split(" ")[0] for line in path.read_text(encoding="utf-8").splitlines())
    return sorted({word for word in words if word.isalpha() and 3 <= len(word) <= 11})


def _thing(draw: random.Random) -> str:
    return f"{draw.choice(['the', 'the', 'my', 'her', 'this', 'another', 'his', 'our', 'that'])} {draw.choice(THINGS)}"


_PLURAL = {"you", "we", "they", "the twins", "the children", "the students", "our guests", "the tourists"}


def _was(person: str) -> str:
    return "were" if person in _PLURAL else "was"


def _number(draw: random.Random) -> str:
    kind = draw.randrange(6)
    if kind == 0:
        return f"The number is {draw.randrange(1000)}."
    if kind == 1:
        return f"It costs {draw.randrange(2, 100)} dollars and {draw.randrange(1, 100)} cents."
    if kind == 2:
        month = calendar.month_name[draw.randrange(1, 13)]
        return f"Today is {month} {draw.randrange(1, 31)}, {draw.randrange(1900, 2040)}."
    if kind == 3:
        minutes = draw.choice(["thirty", "fifteen", "forty five", "o'clock", "ten", "twenty"])
        return f"The train leaves at {draw.randrange(1, 13)} {minutes}."
    if kind == 4:
        return f"There are {draw.randrange(2, 5000)} people {draw.choice(WHERE)}."
    return f"{draw.randrange(1, 100)} plus {draw.randrange(1, 100)} is {draw.randrange(2, 200)}."


def _sentence(draw: random.Random) -> str:
    person, other, thing = draw.choice(PEOPLE), draw.choice(PEOPLE[6:]), _thing(draw)
    where, when, feeling = draw.choice(WHERE), draw.choice(WHEN), draw.choice(FEELINGS)
    do, past, third = draw.choice(ACTIONS), draw.choice(PAST), draw.choice(PEOPLE)
    words = draw.sample(_dictionary(), 3)
    plain = [
        f"{person} {past} {thing} {where} {when}",
        f"{person} {past} {thing} {when}",
        f"{person} {past} {thing}",
        f"{when} {person} {past} {thing} {where}",
        f"{person} {_was(person)} {feeling} because {other} {past} {thing}",
        f"{person} {_was(person)} {feeling} {when}",
        f"{person} said that {other} {past} {thing}, but {third} {_was(third)} {feeling}",
        f"please {do} {when}",
        f"please {do}",
        f"it will be {draw.choice(WEATHER)} and {draw.choice(WEATHER)} {where} {when}",
        f"{other} would like to {do} and {draw.choice(ACTIONS)}",
        f"we should {do}, and then {draw.choice(ACTIONS)} {where}",
        f"there is {draw.choice(['a', 'one', 'no', 'another'])} {draw.choice(THINGS)} {where}",
        f"if you {do}, I will {draw.choice(ACTIONS)} {when}",
    ]
    questions = [
        f"did {person} see {thing} {where}",
        f"can you {do} {when}",
        f"why {_was(person)} {person} so {feeling} {when}",
        f"who {past} {thing} {where}",
        f"where did {other} put {thing}",
        f"would you like to {do} or {draw.choice(ACTIONS)}",
    ]
    carriers = [
        f"{words[0]}, {words[1]} and {words[2]}",
        f"{other} said {words[0]} {where}",
        f"the word {words[0]} is not the word {words[1]}",
        f"{person} {past} the {words[0]} {words[1]} {when}",
    ]
    kind = draw.random()
    if kind < 0.08:
        return _number(draw)
    if kind < 0.33:
        return draw.choice(carriers) + "."
    return draw.choice(questions) + "?" if kind < 0.48 else draw.choice(plain) + "."


def sentences(count: int, seed: int = 0) -> list[str]:
    """Returns ``count`` distinct sentences, excluding :data:`TEST_SENTENCES`."""
    draw = random.Random(seed)
    known = {sentence.lower() for sentence in TEST_SENTENCES}
    made: dict[str, None] = {}
    while len(made) < count:
        sentence = _sentence(draw)
        sentence = sentence[0].upper() + sentence[1:]
        if sentence.lower() not in known:
            made[sentence] = None
    return list(made)


def speak(folder: Path, count: int) -> None:
    """Synthesizes ``count`` sentences into an LJ Speech folder."""
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    texts = {f"sentence_{number:05}": sentence for number, sentence in enumerate(sentences(count))}

    def synthesize(name: str) -> None:
        command = ["flite", "-voice", "slt", "-t", texts[name], "-o", str(folder / "wavs" / f"{name}.wav")]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(synthesize, texts))
    lines = [f"{name}|{sentence}\n" for name, sentence in texts.items()]
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sentences", type=int, default=8000)
    arguments = parser.parse_args()
    speak(arguments.folder, arguments.sentences)


if __name__ == "__main__":
    _main()
