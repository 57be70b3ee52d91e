//! Rewrites of single keywords that llguidance does not know into ones that it does.
//!
//! Invariant: whatever the result accepts the schema accepts; where nothing can be had under that rule the keyword stays
//! and is refused.

use serde_json::{Map, Value as Json, json};

use super::schema::Draft;

/// Rewrites one schema object, not what is inside of it; `root` is the document, for references.
pub(super) fn schema(map: &mut Map<String, Json>, draft: Draft, root: &Json) {
    drop_what_asserts_nothing(map, draft);
    format(map);
    numbers(map);
    dependencies(map, draft);
    one_of(map, draft, root);
}

/// Keywords that hold trivially, or that say nothing by themselves or in this draft.
fn drop_what_asserts_nothing(map: &mut Map<String, Json>, draft: Draft) {
    let is = |map: &Map<String, Json>, keyword: &str, value: &Json| map.get(keyword) == Some(value);
    if is(map, "uniqueItems", &Json::Bool(false)) {
        map.remove("uniqueItems");
    }
    for keyword in ["unevaluatedProperties", "unevaluatedItems", "propertyNames"] {
        if is(map, keyword, &Json::Bool(true)) {
            map.remove(keyword);
        }
    }
    map.remove("deprecated");
    map.remove("contentSchema");
    if draft < Draft::Seven {
        for keyword in ["if", "then", "else"] {
            map.remove(keyword);
        }
    }
    if draft < Draft::Six {
        for keyword in ["contains", "propertyNames"] {
            map.remove(keyword);
        }
    }
    if !map.contains_key("if") {
        map.remove("then");
        map.remove("else");
    } else if !map.contains_key("then") && !map.contains_key("else") {
        map.remove("if");
    }
    if !map.contains_key("contains") {
        map.remove("minContains");
        map.remove("maxContains");
    }
    // Before 2019 a reference's neighbours are not looked at.
    if draft <= Draft::Seven && map.get("$ref").is_some_and(Json::is_string) {
        map.retain(|keyword, _| {
            matches!(keyword.as_str(), "$ref" | "$schema" | "definitions" | "$defs" | "$id" | "id")
        });
    }
}

/// A day that every year has, so no 29th of February.
macro_rules! date {
    () => {
        "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    };
}

/// A label of a host's name.
macro_rules! label {
    () => {
        "[A-Za-z0-9](?:[A-Za-z0-9-]{0,58}[A-Za-z0-9])?"
    };
}

/// A time that every day has, so no leap second.
macro_rules! time {
    () => {
        r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
    };
}

/// Formats that llguidance does not know, or takes more for than it should: a pattern for texts that surely are of the
/// format, or a format that is part of it.
const STRICTER: [(&str, &str); 12] = [
    // Each part within its own limit of length.
    (
        "email",
        concat!(
            r"^[A-Za-z0-9_+-]{1,30}(?:\.[A-Za-z0-9_+-]{1,30})?@",
            label!(),
            r"(?:\.",
            label!(),
            "){1,3}$"
        ),
    ),
    ("hostname", concat!("^", label!(), r"(?:\.", label!(), "){0,3}$")),
    ("date", concat!("^", date!(), "$")),
    ("time", concat!("^", time!(), "$")),
    ("date-time", concat!("^", date!(), "T", time!(), "$")),
    ("iri", "uri"),
    ("uri-reference", r"^(?:/?[A-Za-z0-9._~!$&'()*+,;=@-]+)*/?$"),
    ("iri-reference", r"^(?:/?[A-Za-z0-9._~!$&'()*+,;=@-]+)*/?$"),
    ("uri-template", r"^(?:/?(?:[A-Za-z0-9._~-]+|\{[a-z][a-z0-9_]*\}))*/?$"),
    ("json-pointer", r"^(?:/(?:[^~/\x00-\x1f]|~0|~1)*)*$"),
    ("relative-json-pointer", r"^(?:0|[1-9][0-9]*)(?:#|(?:/(?:[^~/\x00-\x1f]|~0|~1)*)*)$"),
    ("regex", r"^(?:[A-Za-z0-9 _-]|\[[a-z]-[z]\]|\\[dws])*$"),
];
/// Formats that llguidance honours.
const KNOWN: [&str; 5] = ["duration", "ipv4", "ipv6", "uuid", "uri"];

/// A format that no draft defines asserts nothing, and one that llguidance does not know becomes a pattern.
fn format(map: &mut Map<String, Json>) {
    let Some(Json::String(name)) = map.get("format") else { return };
    let name = name.strip_prefix("idn-").unwrap_or(name);
    if KNOWN.contains(&name) {
        return;
    }
    let stricter = STRICTER.iter().find(|(format, _)| *format == name).map(|(_, rule)| *rule);
    map.remove("format");
    let Some(rule) = stricter else { return };
    if KNOWN.contains(&rule) {
        map.insert("format".to_owned(), rule.into());
    } else if map.contains_key("pattern") {
        also(map, json!({ "pattern": rule }));
    } else {
        map.insert("pattern".to_owned(), rule.into());
    }
}

/// The largest number and the smallest that are written where a schema says nothing: every reader of JSON can hold them
/// (and the whole ones as 64-bit integers), and below them llguidance writes neither exponents nor `-0`.
const LARGEST_NUMBER: i64 = 9_000_000_000_000_000_000;

/// Bounds a number on the sides on which it has no bound. Numbers of which no type is asked stay as JSON has them.
fn numbers(map: &mut Map<String, Json>) {
    let is_number = |kind: &Json| kind == "number" || kind == "integer";
    let asked = match map.get("type") {
        Some(Json::Array(kinds)) => kinds.iter().any(is_number),
        Some(kind) => is_number(kind),
        None => false,
    };
    if !asked {
        return;
    }
    for (inclusive, exclusive, bound) in [
        ("minimum", "exclusiveMinimum", -LARGEST_NUMBER),
        ("maximum", "exclusiveMaximum", LARGEST_NUMBER),
    ] {
        // Until draft 6 the exclusive one is a word about the other.
        let is_bounded =
            map.contains_key(inclusive) || map.get(exclusive).is_some_and(Json::is_number);
        if !is_bounded {
            map.insert(inclusive.to_owned(), bound.into());
        }
    }
    let is_whole = match map.get("type") {
        Some(Json::Array(kinds)) => !kinds.iter().any(|kind| kind == "number"),
        Some(kind) => kind == "integer",
        None => false,
    };
    let below_zero = |bound: Option<&Json>| bound.and_then(Json::as_f64).is_some_and(|n| n < 0.0);
    if is_whole && below_zero(map.get("minimum").or(map.get("exclusiveMinimum"))) {
        // Whole numbers that are not written `-0`.
        also(map, json!({ "anyOf": [{ "minimum": 0 }, { "maximum": -1 }] }));
    }
}

/// "Where there is an `a` there is a `b`" becomes "there is no `a`, or there is a `b`".
fn dependencies(map: &mut Map<String, Json>, draft: Draft) {
    // Later drafts took the first word back; whoever writes it means it.
    let words = ["dependencies", "dependentRequired", "dependentSchemas"];
    let keywords = if draft <= Draft::Seven { &words[..1] } else { &words[..] };
    let mut all = Vec::new();
    for keyword in keywords {
        let Some(Json::Object(rules)) = map.get(*keyword) else { continue };
        for (name, rule) in rules {
            let absent = json!({ "properties": { name.as_str(): false } });
            let then = match rule {
                Json::Array(names) => json!({ "required": names }),
                schema => schema.clone(),
            };
            all.push(json!({ "anyOf": [absent, then] }));
        }
        map.remove(*keyword);
    }
    all.into_iter().for_each(|rule| also(map, rule));
}

/// `rule` holds too.
fn also(map: &mut Map<String, Json>, rule: Json) {
    match map.get_mut("allOf") {
        Some(Json::Array(others)) => others.push(rule),
        _ => {
            map.insert("allOf".to_owned(), Json::Array(vec![rule]));
        }
    }
}

/// References followed one after the other.
const MAX_REFERENCES: usize = 16;
/// A bit for each type of JSON.
const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];
const ANY_TYPE: u8 = 0b11_1111;

/// Where no value can be of the types of two options, or have the properties that each of them requires, one of them is
/// any of them.
fn one_of(map: &mut Map<String, Json>, draft: Draft, root: &Json) {
    let Some(Json::Array(options)) = map.get("oneOf") else { return };
    if let Some(apart) = required_apart(options) {
        map.remove("oneOf");
        return also(map, json!({ "anyOf": apart }));
    }
    let mut seen = 0;
    for option in options {
        let types = types(option, draft, root, MAX_REFERENCES);
        if seen & types != 0 {
            return;
        }
        seen |= types;
    }
    let Some(options) = map.remove("oneOf") else { return };
    if map.contains_key("anyOf") {
        also(map, json!({ "anyOf": options }));
    } else {
        map.insert("anyOf".to_owned(), options);
    }
}

/// Keywords that assert nothing.
const WORDS: [&str; 5] = ["title", "description", "$comment", "default", "examples"];

/// Options that only require properties: each of them without one that another asks for.
fn required_apart(options: &[Json]) -> Option<Vec<Json>> {
    let names = |option: &Json| -> Option<Vec<String>> {
        let asserts = |(word, _): &(&String, &Json)| !WORDS.contains(&word.as_str());
        let mut asserted = option.as_object()?.iter().filter(asserts);
        let (word, names) = asserted.next()?;
        let names = names.as_array().filter(|_| word == "required" && asserted.next().is_none())?;
        names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let required: Vec<Vec<String>> = options.iter().map(names).collect::<Option<_>>()?;
    let mut apart = Vec::new();
    for (index, own) in required.iter().enumerate() {
        let others = required.iter().enumerate().filter(|(other, _)| *other != index);
        // Nobody has what this one asks for and not the other, if that asks for no more.
        let absent: Option<Vec<&String>> =
            others.map(|(_, other)| other.iter().find(|name| !own.contains(*name))).collect();
        if let Some(absent) = absent {
            let absent: Map<String, Json> =
                absent.into_iter().map(|name| (name.clone(), Json::Bool(false))).collect();
            apart.push(json!({ "required": own, "properties": absent }));
        }
    }
    (!apart.is_empty()).then_some(apart)
}

/// Puts what the options of a `oneOf` refer to in their place, for only then can it be seen that they exclude one
/// another. Whether it did.
pub(super) fn resolve_options(map: &mut Map<String, Json>, root: &Json) -> bool {
    let Some(Json::Array(options)) = map.get_mut("oneOf") else { return false };
    let mut resolved = false;
    for option in options {
        let Json::Object(asked) = &*option else { continue };
        if asked.keys().any(|word| word != "$ref" && !WORDS.contains(&word.as_str())) {
            continue;
        }
        let reference = asked.get("$ref").and_then(Json::as_str);
        let target = reference.and_then(|reference| root.pointer(reference.strip_prefix('#')?));
        if let Some(target @ Json::Object(_)) = target {
            *option = target.clone();
            resolved = true;
        }
    }
    resolved
}

/// The types that values of a schema may have: all that are not ruled out for sure.
fn types(schema: &Json, draft: Draft, root: &Json, references: usize) -> u8 {
    let Json::Object(map) = schema else { return ANY_TYPE };
    let bit = |name: &str| {
        let name = if name == "integer" { "number" } else { name };
        TYPES.iter().position(|known| *known == name).map_or(ANY_TYPE, |index| 1 << index)
    };
    let mut all = match map.get("type") {
        Some(Json::String(name)) => bit(name),
        Some(Json::Array(names)) => {
            names.iter().fold(0, |bits, name| bits | name.as_str().map_or(ANY_TYPE, bit))
        }
        _ => ANY_TYPE,
    };
    if let Some(Json::Array(values)) = map.get("enum") {
        all &= values.iter().fold(0, |bits, value| bits | bit(type_of(value)));
    }
    if let Some(reference) = map.get("$ref").and_then(Json::as_str) {
        if draft <= Draft::Seven {
            // Its neighbours are not looked at.
            all = ANY_TYPE;
        }
        let target = reference.strip_prefix('#').filter(|_| references > 0);
        if let Some(target) = target.and_then(|pointer| root.pointer(pointer)) {
            all &= types(target, draft, root, references - 1);
        }
    }
    all
}

fn type_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(draft: Draft, given: Json, wanted: Json) {
        let Json::Object(mut map) = given else { panic!("not an object") };
        schema(&mut map, draft, &Json::Null);
        assert_eq!(Json::Object(map), wanted);
    }

    #[test]
    fn what_asserts_nothing_goes_and_what_asserts_stays() {
        let (new, old) = (Draft::Y2020, Draft::Four);
        check(new, json!({"uniqueItems": false, "then": {}}), json!({}));
        check(
            new,
            json!({"uniqueItems": true, "not": {}}),
            json!({"uniqueItems": true, "not": {}}),
        );
        check(new, json!({"if": {}, "then": {}}), json!({"if": {}, "then": {}}));
        check(old, json!({"if": {}, "then": {}, "contains": {}, "minContains": 2}), json!({}));
        let sibling = json!({"$ref": "#/a", "minLength": 3});
        check(new, sibling.clone(), sibling.clone());
        check(Draft::Seven, sibling, json!({"$ref": "#/a"}));
        // A property may be called so.
        check(old, json!({"$ref": {}, "minLength": 3}), json!({"$ref": {}, "minLength": 3}));
    }

    #[test]
    fn formats_are_kept_or_made_stricter_or_assert_nothing() {
        let new = Draft::Y2020;
        check(new, json!({"format": "uuid"}), json!({"format": "uuid"}));
        check(new, json!({"format": "iri"}), json!({"format": "uri"}));
        check(new, json!({"format": "credit card"}), json!({}));
        let day = concat!("^", date!(), "$");
        check(new, json!({"format": "date"}), json!({"pattern": day}));
        check(
            new,
            json!({"format": "date", "pattern": "^2"}),
            json!({"pattern": "^2", "allOf": [{"pattern": day}]}),
        );
    }

    #[test]
    fn one_of_several_types_is_any_of_them() {
        let root =
            json!({"d": {"a": {"type": "string"}, "b": {"$ref": "#/d/a"}, "c": {"$ref": "#/d/c"}}});
        let check = |options: Json, disjoint: bool| {
            let mut map = Map::new();
            map.insert("oneOf".to_owned(), options.clone());
            schema(&mut map, Draft::Y2020, &root);
            assert_eq!(map.get("anyOf"), disjoint.then_some(&options), "{options}");
            assert_eq!(map.contains_key("oneOf"), !disjoint);
        };
        check(json!([{"$ref": "#/d/b"}, {"type": ["array", "null"]}, {"enum": [1, true]}]), true);
        check(json!([{"$ref": "#/d/b"}, {"type": "string"}]), false);
        check(json!([{"type": "integer"}, {"type": "number"}]), false);
        check(json!([{"$ref": "#/d/c"}, {"type": "null"}]), false);
        check(json!([{"$ref": "other#/d/a"}, {"type": "null"}]), false);
        check(json!([true, {"type": "null"}]), false);
    }

    #[test]
    fn options_that_require_are_set_apart() {
        let given = json!({"oneOf": [{"required": ["a", "b"]}, {"required": ["a", "c"], "title": "t"}, {"required": ["a"]}]});
        let wanted = json!({"allOf": [{"anyOf": [
            {"required": ["a", "b"], "properties": {"c": false}},
            {"required": ["a", "c"], "properties": {"b": false}},
        ]}]});
        // Where one of the first two holds so does the third, and both is one too many.
        let alone = json!({"required": ["a"], "properties": {"b": false, "c": false}});
        check(Draft::Y2020, given, json!({"allOf": [{"anyOf": [alone]}]}));
        let given =
            json!({"oneOf": [{"required": ["a", "b"]}, {"required": ["a", "c"], "title": "t"}]});
        check(Draft::Y2020, given, wanted);
    }

    #[test]
    fn dependencies_become_alternatives() {
        let rules = json!({"a": ["b"], "c": {"minProperties": 2}});
        let wanted = json!({"allOf": [
            {"anyOf": [{"properties": {"a": false}}, {"required": ["b"]}]},
            {"anyOf": [{"properties": {"c": false}}, {"minProperties": 2}]},
        ]});
        check(Draft::Four, json!({ "dependencies": rules }), wanted);
        // A draft that does not know the keyword leaves it alone.
        check(Draft::Four, json!({"dependentRequired": {}}), json!({"dependentRequired": {}}));
    }

    #[test]
    fn numbers_are_bounded_on_both_sides() {
        let (low, high) = (-LARGEST_NUMBER, LARGEST_NUMBER);
        let new = Draft::Y2020;
        let signs = json!([{"anyOf": [{"minimum": 0}, {"maximum": -1}]}]);
        check(
            new,
            json!({"type": "integer"}),
            json!({"type": "integer", "minimum": low, "maximum": high, "allOf": signs}),
        );
        let counted = json!({"type": "integer", "minimum": 0, "maximum": 7});
        check(new, counted.clone(), counted);
        check(
            new,
            json!({"type": ["null", "number"], "exclusiveMinimum": 0}),
            json!({"type": ["null", "number"], "exclusiveMinimum": 0, "maximum": high}),
        );
        check(
            new,
            json!({"type": "number", "maximum": 5, "exclusiveMaximum": true}),
            json!({"type": "number", "maximum": 5, "exclusiveMaximum": true, "minimum": low}),
        );
        check(new, json!({"type": "string"}), json!({"type": "string"}));
    }
}
