"""Trust over years: which keys may sign vectors and bundles, who says so, and how that changes.

* `Trust` holds the rules: a chain of roots, the list of keys that the last of them signed, and what may
  follow what. It does no I/O.
* `TrustFile` is the file of a device, which only ever moves forward; `Policy(trust=FILE)` makes one.
* `Bundles` is what a policy asks of bundles: keys, and that none goes back to an older one.
* `editor` is the host's side: begin, add, revoke, rotate, sign.
* `Envelope` is the form of everything that is signed here, and of a bundle's statement: DSSE.
"""

from . import editor
from .bundles import Bundles
from .chain import Trust
from .envelope import Envelope
from .file import TrustFile
from .records import KeyList, ListedKey, Root

__all__ = ["Bundles", "Envelope", "KeyList", "ListedKey", "Root", "Trust", "TrustFile", "editor"]
