"""Commands of a qube: each module is one program (`main(argv)`). They start under emulation: import next to nothing."""
