//! Who may spend what: accounts, keys, prices, holds and postings. Never hears of HTTP or of text.
