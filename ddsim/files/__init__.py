"""Files: whole or not at all, read strictly, locked while they are written.

``atomic`` writes, ``documents`` reads and writes JSON, ``cache`` is the user's cache folder, ``locks`` keeps a folder to one writer.

May use: errors, text.
"""
