"""Built-in corpus: English sentences spoken by espeak-ng, for trying everything without a download."""

import ctypes
from pathlib import Path

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

from vits_trainer.data.audio import to_pcm16, write_pcm16_wav
from vits_trainer.utils.errors import DataError

WORDS_PER_MINUTE = 175
_SYNCHRONOUS, _DONT_EXIT, _RATE, _UTF8 = 2, 0x8000, 1, 1

SENTENCES = """\
The rain fell softly on the old stone bridge.
She opened the window and looked at the sea.
A small boat crossed the river before noon.
He put the kettle on and waited for his friend.
The children ran across the field to the house.
My sister plays the violin every evening.
We walked along the shore until the sun went down.
The baker sold his last loaf at nine.
Snow covered the hills for most of the winter.
Please leave the keys on the kitchen table.
The train to the north leaves in five minutes.
An old dog slept beside the warm stove.
They planted apple trees behind the school.
The clock in the hall has stopped again.
I read the letter twice and put it away.
A cold wind came down from the mountains.
The teacher wrote a long word on the board.
Nobody knew why the lamp was still burning.
The farmer carried hay into the barn.
You can see the whole valley from the tower.
Her brother built a chair from oak and pine.
The market opens early on Saturday.
We heard a bell ring far across the water.
The painter mixed blue and yellow to make green.
He drank a glass of milk and went to bed.
Two birds sat on the wire and sang.
The doctor asked me how I felt.
There is a quiet garden behind the wall.
The soup was hot and smelled of onions.
She counted the stars until she fell asleep.
The judge listened to both men with care.
A letter came from the other side of the world.
The river froze and the boys went skating.
Turn left at the church and follow the road.
The cat jumped from the roof to the fence.
His coat was too thin for such a night.
The miller ground the corn into flour.
We shared the bread and the cheese.
The ship came home after seven years.
Music and laughter filled the narrow street.
The young queen spoke to the crowd.
I forgot to bring my umbrella.
The mountain looks purple in the evening light.
They found a silver coin under the floor.
The tailor measured the cloth with his hands.
Every spring the swallows come back.
The boy threw a stone into the lake.
She baked a cake with plums and honey.
A thin fog lay over the meadow.
The guard closed the heavy gate at dusk.
We need more wood for the fire.
The old map showed a path through the forest.
He fixed the broken wheel with wire.
The moon rose above the quiet town.
My father grew beans and potatoes.
The horse drank from the stream.
Light fell through the leaves onto the grass.
The sailor told us a strange story.
A red kite flew high above the beach.
The queue moved slowly towards the door.
Give the girl a pencil and some paper.
The bridge was built of iron and brick.
Just then the phone rang in the next room.
Thick smoke rose from the chimney.
"""


def speak_corpus(folder: Path, voice: str = "en-us") -> Path:
    """Speaks :data:`SENTENCES` into an LJ Speech folder (metadata.csv, wavs/). The result is deterministic.

    Args:
        folder: created if absent, otherwise overwritten.
        voice: espeak-ng's name of the voice.

    Returns:
        ``folder``.

    Raises:
        DataError: espeak-ng has no such voice.
    """
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    sentences = SENTENCES.splitlines()
    espeak = Espeak(voice)
    lines = []
    for number, sentence in enumerate(sentences, start=1):
        name = f"sentence_{number:03}"
        write_pcm16_wav(folder / "wavs" / f"{name}.wav", to_pcm16(espeak.speak(sentence)), espeak.rate_hz)
        lines.append(f"{name}|{sentence}\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return folder


class Espeak:
    """A voice of espeak-ng's C library, loaded from the PyPI package espeakng-loader.

    Raises:
        DataError: espeak-ng has no such voice.
    """

    def __init__(self, voice: str) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.rate_hz = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT))
        if self.rate_hz <= 0 or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise DataError(f"espeak-ng has no voice {voice!r}. Reinstall espeakng-loader, or choose another voice.")
        self._library.espeak_SetParameter(_RATE, WORDS_PER_MINUTE, 0)
        self._chunks: list[NDArray[np.float32]] = []
        # A reference is kept because C calls it later.
        self._callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(
            self._receive
        )
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str) -> NDArray[np.float32]:
        """Returns the speech, (T,), in [-1, 1]."""
        self._chunks = []
        content = text.encode() + b"\0"
        self._library.espeak_Synth(content, ctypes.c_size_t(len(content)), 0, 1, 0, _UTF8, None, None)
        return np.concatenate(self._chunks)

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int | None) -> int:
        if count > 0:  # the last call has no samples
            pcm = np.ctypeslib.as_array(samples, (count,)).astype(np.float32)
            self._chunks.append(pcm / np.float32(32768))
        return 0
