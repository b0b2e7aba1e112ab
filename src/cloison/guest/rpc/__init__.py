"""Services of a qube that are more than a line of shell: each module is one or two programs (`main(argv)`).

What comes on standard input is another qube's or the host's: bounded, and untrusted until checked.
"""
