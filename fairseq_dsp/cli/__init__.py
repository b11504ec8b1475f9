"""The console commands, one module each: parse, call the library, print. `arguments` is what they read alike."""
