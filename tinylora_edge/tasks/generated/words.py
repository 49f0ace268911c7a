"""The words of the generated tasks, and the way from them to samples: the same prompts everywhere.

Nouns and names are split once and for all, by word and not by prompt: a held-out prompt asks for something
that was in no training prompt of any task, whatever the seed. Shifted prompts have words of their own too,
rarer and longer ones. The seed draws the training prompts; the others are the same for every seed, so that
runs can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import TrainError
from ..guards import without_genitive
from ..task import Draw, Reward, Sample, Task


@dataclass(frozen=True)
class Words:
    """The words of one split: things to have several of; nouns, which are things and others that can be
    counted; short nouns of 6 letters (8 where shifted), which a small model copies half of the time; names.
    """

    things: tuple[str, ...]
    nouns: tuple[str, ...]
    short: tuple[str, ...]
    names: tuple[str, ...]


Build = Callable[[Words, Draw], Sample]
"""Makes one sample from one split's words."""


@dataclass(frozen=True)
class GeneratedTask:
    """A task whose prompts are built from word lists; shifted ones have other phrasings and longer inputs."""

    name: str
    build: Build
    build_shifted: Build
    reward: Reward
    max_tokens: int
    temperature: float
    shaped: Reward | None = None

    def make(self, seed: int, train: int, held_out: int) -> Task:
        """Return the task with so many samples; a TrainError where the word lists give fewer prompts."""
        return Task(
            self.name,
            _distinct(f"{self.name}/train/{seed}", self.build, TRAIN, train),
            _distinct(f"{self.name}/held_out", self.build, HELD_OUT, held_out),
            self.reward,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            shaped=self.shaped,
            shifted=_distinct(f"{self.name}/shifted", self.build_shifted, SHIFTED, held_out),
        )


def ask(question: str, answer: str | None = None, **data: object) -> Sample:
    """Return a sample of one user message."""
    return Sample(({"role": "user", "content": question},), answer, data)


def has_noun(sequence: Sequence[str], sample: Sample) -> bool:
    """Whether words have the noun that the sample is about, in singular or plural."""
    noun = sample.data["noun"]
    return any(without_genitive(word) in (noun, plural(noun)) for word in sequence)


def plural(noun: str) -> str:
    """Return the regular plural of a noun."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def article(noun: str) -> str:
    """Return a noun with its indefinite article: "a river", "an owl"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _distinct(seed: str, build: Build, side: Words, count: int) -> tuple[Sample, ...]:
    draw = Draw(seed)
    found: dict[str, Sample] = {}
    vain = 0
    while len(found) < count:
        sample = build(side, draw)
        vain = vain + 1 if sample.text in found else 0
        found.setdefault(sample.text, sample)
        if vain > 2000:
            raise TrainError(
                f"{seed.split('/')[0]}: the word lists give about {len(found)} different prompts on the "
                f"{seed.split('/')[1]} side, but {count} were asked for: ask for fewer"
            )
    return tuple(found.values())


_TRAIN_THINGS = """
    acorn apple bag bagel ball balloon banana basket battery bell blanket box bracelet brick broom brush
    bucket cabbage cake candle candy cap carrot chair cherry clock coin comb cookie crayon desk drum egg
    feather flower fork gem glove hat jar kettle kite ladder lemon lock magnet map mirror muffin mug
    nail notebook nut pancake peach pebble pen pillow plate plum postcard pretzel puppet puzzle radish
    ribbon robot scarf screw seed shoe sock stamp stone stool table towel toy trumpet tulip turnip umbrella
    walnut watch whistle zipper
"""
_TRAIN_OTHERS = """
    airplane ambulance anchor arrow backpack balcony barn bear bedroom bee beetle bicycle boat brain bridge
    bus butterfly camel cannon canoe car carpenter cave chicken chimney church city cloud compass computer
    crow dentist dictionary doctor dog donkey door duck eagle elbow engine factory farmer fence finger floor
    forest frog garden gate goat harbor harp heart helicopter hill horse hospital house judge king lake
    lawyer library lion lobster microscope monkey mountain mushroom newspaper nurse octopus painter palace
    parrot pigeon poem prison queen rabbit radio rainbow refrigerator restaurant rocket roof sail sailor
    school shark shield shoulder singer soldier sparrow spider stadium star storm stove sunflower sword
    teacher telescope tent theater tower tractor truck turtle valley village violin volcano wagon wall
    wallet waterfall wheel window zebra
"""
_TRAIN_SHORT = """
    anchor apple bag bagel ball barn basket bath bean bear bike boat brain bread brick bridge broom bucket
    cable cake camel candy cannon carpet cave chair church city clock coast coin cookie crayon dance desk
    doctor dog door drama drum duck eagle egg fence field finger fire flower forest fork fox frog garden gem
    glove goat goose harbor harp hat heart horse house jar kite lake leaf lemon lime lion magnet mango
    map milk monkey muffin mug nail palace pan peach pen photo pigeon pipe plate pond pool rabbit rain sail
    sailor saw school shark shed shelf shoe singer sink sled sofa stamp star stone stool storm stove stream
    street sun sword table tower truck tulip vase wagon walnut wheel wind window zebra zipper
"""
_TRAIN_NAMES = """
    Adam Alice Anna Ben Clara Dan Ella Emma Eric Eva Finn George Grace Henry Jack Kate Leo Lily Lucy Mark
    Max Mia Nina Oscar Paul Rosa Ruth Sam Sara Tom
"""
_HELD_OUT_THINGS = """
    belt book boot bottle bowl button camera card cup doll envelope eraser flute hammer jacket lamp lantern
    lollipop magazine marble marker melon necklace onion orange pear pencil poster pumpkin ring rock rope
    rose ruler sandwich shell shirt spoon sticker sweater teapot ticket tray
"""
_HELD_OUT_OTHERS = """
    airport ant baker bakery beach cactus calendar castle cat comet cow crab crocodile dancer desert diary
    dolphin elephant farm giraffe guitar hamster hotel island kitchen lighthouse lizard market meadow moon
    museum ocean oven owl penguin piano pig pilot planet plumber printer river ship snail snake song
    squirrel stair stomach suitcase swan telephone television temple tiger toaster train tree tunnel vine
    whale
"""
_HELD_OUT_SHORT = """
    baker belt book bottle bowl branch bull cabin cactus camera cat cow crab crown cup dancer diary dock
    doll eraser farm game graph honey hotel hut island jacket jet lamb lamp lizard marble marker market
    melon moon museum ocean orange pear pencil piano pig pilot pizza planet pony port ring river rock salt
    ship shirt stair teapot tiger tire tray tree wolf
"""
_HELD_OUT_NAMES = """
    Amy Carl Diana Frank Helen Ivan Jane Laura Martin Noah Olga Peter Simon Tina Victor
"""

_SHIFTED_THINGS = """
    abacus accordion almanac amulet anvil apricot artichoke avocado barometer bassoon beaker bobbin bonnet
    brooch bugle cardigan castanet cauldron chalice chandelier chisel clarinet cleaver colander corkscrew
    crowbar cutlass dagger decanter doily dulcimer easel emerald figurine flask gauntlet goblet gong
    haversack javelin kaleidoscope kumquat lute mallet mandolin medallion metronome monocle nectarine
    nutcracker oboe padlock paperweight parasol pendant persimmon pomegranate protractor quill rucksack
    sapphire satchel scabbard scepter sextant sickle snorkel spatula stethoscope sundial syringe
    tambourine tapestry thimble tiara toboggan trinket trombone trowel tureen vial wrench xylophone zither
"""
_SHIFTED_OTHERS = """
    aardvark abbey acrobat alchemist alpaca apothecary aqueduct archipelago armadillo astronomer
    auditorium avalanche barnacle basilica blacksmith blizzard bricklayer buccaneer capybara chameleon
    chancellor chinchilla choreographer citadel cobbler cockatoo condor cormorant courthouse coyote
    cypress dragonfly dromedary embassy estuary falconer ferret flamingo fortress galleon gazelle geyser
    glassblower gondola gymnasium hacienda hedgehog iguana isthmus jaguar juggler kangaroo lagoon lemur
    locksmith locomotive magistrate manatee marmot mausoleum meteorite monastery narwhal nightingale
    notary obelisk observatory ocelot orangutan otter pagoda pangolin peninsula philosopher platypus
    puffin quarry raccoon reservoir salamander sculptor seamstress shipwright silversmith sloth stalactite
    stingray taxidermist treasury typhoon viaduct vicar vineyard walrus weasel windmill wolverine
    woodpecker yak zeppelin
"""
_SHIFTED_NAMES = """
    Ambrose Beatrix Cordelia Desmond Evangeline Ferdinand Gwendolyn Horatio Isolde Jasper Leopold Millicent
    Ophelia Percival Quentin Rosalind Sebastian Theodora Ulysses Winifred
"""
_LONGEST_SHIFTED = 8  # letters of a noun that lists are made of


def _words(things: str, others: str, short: str, names: str) -> Words:
    both = (*things.split(), *others.split())
    return Words(tuple(things.split()), both, tuple(short.split()), tuple(names.split()))


_SHIFTED_SHORT = " ".join(
    noun for noun in f"{_SHIFTED_THINGS} {_SHIFTED_OTHERS}".split() if len(noun) <= _LONGEST_SHIFTED
)
TRAIN = _words(_TRAIN_THINGS, _TRAIN_OTHERS, _TRAIN_SHORT, _TRAIN_NAMES)
HELD_OUT = _words(_HELD_OUT_THINGS, _HELD_OUT_OTHERS, _HELD_OUT_SHORT, _HELD_OUT_NAMES)
SHIFTED = _words(_SHIFTED_THINGS, _SHIFTED_OTHERS, _SHIFTED_SHORT, _SHIFTED_NAMES)
