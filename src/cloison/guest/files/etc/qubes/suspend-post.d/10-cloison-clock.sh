#!/bin/sh
# The clock stood still while the machine slept.
exec qvm-sync-clock
