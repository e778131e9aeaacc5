"""Where artifacts run: this machine, boards over SSH, phones over adb, all behind one agent.

In come files, inputs and a device; out come outputs, measurements with their statistics, and typed errors.
What a device sends is untrusted: it is read by type, and never executed.
"""
