"""Makes thumbnails.

The event has an image in base64, or says what to paint; the answer has the thumbnail as PNG in
base64, and what it looks like.
"""

import base64
import hashlib
import io

from PIL import Image

LARGEST = 4096


def handler(event, context):
    image = load(event["image"]) if "image" in event else paint(event["paint"])
    width, height = event.get("size", [128, 128])
    before = image.size
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((width, height), Image.Resampling.BOX)
    out = io.BytesIO()
    thumbnail.save(out, "PNG", optimize=True)
    answer = {
        "before": list(before),
        "after": list(thumbnail.size),
        "corners": corners(thumbnail),
        "pixels": hashlib.sha256(thumbnail.tobytes()).hexdigest(),
    }
    if event.get("png", True):
        answer["png"] = base64.b64encode(out.getvalue()).decode()
    return answer


def load(text):
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    if max(image.size) > LARGEST:
        raise ValueError(f"the image is larger than {LARGEST} pixels")
    return image


def paint(size):
    """Red grows to the right, green downwards, blue in a chessboard."""
    width, height = size
    pixels = bytearray()
    for y in range(height):
        for x in range(width):
            pixels += bytes((255 * x // width, 255 * y // height, 255 * ((x // 8 + y // 8) % 2)))
    return Image.frombytes("RGB", (width, height), bytes(pixels))


def corners(image):
    right, bottom = image.width - 1, image.height - 1
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
    return [list(image.getpixel(place)) for place in places]
