"""AES-128 in counter mode (FIPS 197, NIST SP 800-38A), for something to compute. Not for secrets:
its time depends on them."""


def _tables():
    """The S-box, from inverses in GF(2^8) and the affine map."""
    box = [0] * 256
    p = q = 1
    while True:
        p ^= _double(p)
        q ^= q << 1
        q ^= q << 2
        q ^= q << 4
        q &= 0xFF
        if q & 0x80:
            q ^= 0x09
        mixed = q
        for turn in range(1, 5):
            mixed ^= (q << turn | q >> (8 - turn)) & 0xFF
        box[p] = mixed ^ 0x63
        if p == 1:
            box[0] = 0x63
            return bytes(box)


def _double(value):
    value <<= 1
    return value ^ 0x11B if value & 0x100 else value


BOX = _tables()
DOUBLE = bytes(_double(value) for value in range(256))
# Where each byte of the state comes from when rows are shifted.
SHIFTED = [(4 * (column + row) + row) % 16 for column in range(4) for row in range(4)]


def expand(key):
    words = [key[at : at + 4] for at in range(0, 16, 4)]
    constant = 1
    for number in range(4, 44):
        word = words[-1]
        if number % 4 == 0:
            word = bytes(BOX[byte] for byte in word[1:] + word[:1])
            word = bytes([word[0] ^ constant]) + word[1:]
            constant = _double(constant)
        words.append(bytes(a ^ b for a, b in zip(words[-4], word)))
    return [b"".join(words[at : at + 4]) for at in range(0, 44, 4)]


def encrypt(keys, block):
    state = [a ^ b for a, b in zip(block, keys[0])]
    for key in keys[1:]:
        state = [BOX[state[place]] for place in SHIFTED]
        if key is not keys[-1]:
            state = _mix(state)
        state = [a ^ b for a, b in zip(state, key)]
    return bytes(state)


def _mix(state):
    mixed = []
    for at in range(0, 16, 4):
        column = state[at : at + 4]
        whole = column[0] ^ column[1] ^ column[2] ^ column[3]
        for row in range(4):
            pair = column[row] ^ column[(row + 1) % 4]
            mixed.append(column[row] ^ whole ^ DOUBLE[pair])
    return mixed


def ctr(key, nonce, data):
    keys = expand(key)
    counter = int.from_bytes(nonce, "big")
    out = bytearray()
    for at in range(0, len(data), 16):
        stream = encrypt(keys, ((counter + at // 16) % 2**128).to_bytes(16, "big"))
        out += bytes(a ^ b for a, b in zip(data[at : at + 16], stream))
    return bytes(out)
