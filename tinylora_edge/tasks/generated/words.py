"""The nouns and names of the generated tasks, split once and for all: none is both trained and measured on.

The split is by word, not by prompt, so that a held-out prompt asks for something that was never in any
training prompt of any task, whatever the seed. Shifted prompts have words of their own too, rarer and longer
ones. Plurals are regular (`plural`), articles follow the first letter (`article`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """The words of one split.

    Attributes:
        things: nouns of things that a person can have several of.
        nouns: things, and animals, places, people and machines: countable, all with an indefinite article.
        short: nouns of 6 letters at most. A small model that copies badly copies half of these sometimes;
            of longer words fewer. The shifted ones have up to 8 letters.
        names: first names.
        animals: nouns of those that can be kept, if need be.
    """

    things: tuple[str, ...]
    nouns: tuple[str, ...]
    short: tuple[str, ...]
    names: tuple[str, ...]
    animals: tuple[str, ...]


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
_TRAIN_ANIMALS = """
    bear bee beetle butterfly camel chicken crow dog donkey duck eagle frog goat horse lion lobster monkey
    octopus parrot pigeon rabbit shark sparrow spider turtle zebra
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

_HELD_OUT_ANIMALS = """
    ant cat cow crab crocodile dolphin elephant giraffe hamster lizard owl penguin pig snail snake squirrel
    swan tiger whale
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
_SHIFTED_ANIMALS = """
    aardvark alpaca armadillo capybara chameleon chinchilla cockatoo condor cormorant coyote dragonfly
    dromedary ferret flamingo gazelle hedgehog iguana jaguar kangaroo lemur manatee marmot narwhal nightingale
    ocelot orangutan otter pangolin platypus puffin raccoon salamander sloth stingray walrus weasel wolverine
    woodpecker yak
"""
_LONGEST_SHIFTED = 8  # letters of a noun that lists are made of


def _words(things: str, others: str, short: str, names: str, animals: str) -> Words:
    return Words(
        tuple(things.split()),
        (*things.split(), *others.split()),
        tuple(short.split()),
        tuple(names.split()),
        tuple(animals.split()),
    )


TRAIN = _words(_TRAIN_THINGS, _TRAIN_OTHERS, _TRAIN_SHORT, _TRAIN_NAMES, _TRAIN_ANIMALS)
"""The words of training prompts."""

HELD_OUT = _words(_HELD_OUT_THINGS, _HELD_OUT_OTHERS, _HELD_OUT_SHORT, _HELD_OUT_NAMES, _HELD_OUT_ANIMALS)
"""The words of held-out prompts."""

_SHIFTED_SHORT = " ".join(
    noun for noun in f"{_SHIFTED_THINGS} {_SHIFTED_OTHERS}".split() if len(noun) <= _LONGEST_SHIFTED
)
SHIFTED = _words(_SHIFTED_THINGS, _SHIFTED_OTHERS, _SHIFTED_SHORT, _SHIFTED_NAMES, _SHIFTED_ANIMALS)
"""The words of shifted prompts: rarer and longer ones."""
