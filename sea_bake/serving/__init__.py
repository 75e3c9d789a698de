"""Try it: base and edited model asked, chatted with and served side by side, in every runtime that is here."""
