//! Any bytes as a price list, TOML and JSON: read or refused, and what is read can be rated and reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod price_list_body;

fuzz_target!(|data: &[u8]| {
    price_list_body::check(data);
});
