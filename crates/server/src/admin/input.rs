//! Queries and bodies, held to what the table says a route takes. Each refusal names the field and what it must be.

use mintage_ledger::Amount;
use serde_json::{Map, Value};

use super::table::{Field, Kind};
use crate::error::{ApiError, Fault};

/// Values in one list of a query.
const MAX_LIST: usize = 256;
/// How much of an unknown name is repeated.
const SHOWN_CHARS: usize = 60;

/// Values that are known, of the right types and complete.
#[derive(Debug, Default)]
pub(crate) struct Input(Map<String, Value>);

impl Input {
    /// `a=1&b=2`.
    pub(crate) fn of_query(query: &str, fields: &[Field]) -> Result<Self, ApiError> {
        let mut map = Map::new();
        for (name, text) in form_urlencoded::parse(query.as_bytes()) {
            let plain = name.strip_suffix("[]").unwrap_or(&name);
            let field = known(fields, plain)?;
            let value = from_text(field, &text)?;
            let is_list = matches!(field.kind, Kind::Texts | Kind::Choices(_));
            match map.get_mut(plain) {
                Some(Value::Array(values)) if values.len() < MAX_LIST => values.push(value),
                Some(Value::Array(_)) => {
                    let message = format!("`{plain}` has more than {MAX_LIST} values.");
                    return Err(ApiError::field(plain, "invalid_value", message));
                }
                Some(_) => {
                    let message = format!("`{plain}` is given twice.");
                    return Err(ApiError::field(plain, "invalid_value", message));
                }
                None => {
                    let value = if is_list { Value::Array(vec![value]) } else { value };
                    map.insert(plain.to_owned(), value);
                }
            }
        }
        complete(map, fields)
    }

    /// A JSON object; nothing at all is an empty one.
    pub(crate) fn of_body(body: &[u8], fields: &[Field]) -> Result<Self, ApiError> {
        let value = if body.is_empty() {
            Value::Object(Map::new())
        } else {
            serde_json::from_slice(body).map_err(|error| {
                let message = format!("The request's body is not valid JSON: {error}.");
                ApiError::new(Fault::Invalid, "invalid_json", message)
            })?
        };
        let Value::Object(map) = value else {
            let message = "The request's body must be a JSON object.";
            return Err(ApiError::new(Fault::Invalid, "invalid_type", message));
        };
        for (name, value) in &map {
            let field = known(fields, name)?;
            let left_out = value.is_null() && !field.is_required;
            if !left_out && !fits(field.kind, value) {
                return Err(wrong(field));
            }
        }
        complete(map, fields)
    }

    /// Whether the field was given, `null` included.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.value(name)?.as_str()
    }

    /// A text that the table requires.
    pub(crate) fn required(&self, name: &str) -> &str {
        self.text(name).unwrap_or_default()
    }

    pub(crate) fn integer(&self, name: &str) -> Option<u64> {
        self.value(name)?.as_u64()
    }

    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.value(name)?.as_bool()
    }

    pub(crate) fn texts(&self, name: &str) -> Option<Vec<String>> {
        let values = self.value(name)?.as_array()?;
        Some(values.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect())
    }

    pub(crate) fn amount(&self, name: &str) -> Option<Amount> {
        self.text(name)?.parse().ok()
    }

    /// An object as a type of the ledger.
    pub(crate) fn object<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        serde_json::from_value(value.clone()).map(Some).map_err(|error| {
            ApiError::field(name, "invalid_value", format!("`{name}` cannot be used: {error}."))
        })
    }
}

fn known<'a>(fields: &'a [Field], name: &str) -> Result<&'a Field, ApiError> {
    fields.iter().find(|field| field.name == name).ok_or_else(|| {
        let name: String = name.chars().take(SHOWN_CHARS).collect();
        let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let message = format!("Unknown parameter: `{name}`. Known here: {known}.");
        ApiError::field(name, "unknown_parameter", message)
    })
}

fn complete(map: Map<String, Value>, fields: &[Field]) -> Result<Input, ApiError> {
    match fields.iter().find(|field| field.is_required && !map.contains_key(field.name)) {
        None => Ok(Input(map)),
        Some(field) => {
            let message = format!("`{}` is missing: {}.", field.name, field.about);
            Err(ApiError::field(field.name, "missing_required_parameter", message))
        }
    }
}

fn fits(kind: Kind, value: &Value) -> bool {
    let text = value.as_str();
    let texts = |fit: &dyn Fn(&str) -> bool| {
        value
            .as_array()
            .is_some_and(|v| v.len() <= MAX_LIST && v.iter().all(|v| v.as_str().is_some_and(fit)))
    };
    match kind {
        Kind::Text => text.is_some(),
        Kind::Integer => value.as_u64().is_some(),
        Kind::Flag => value.is_boolean(),
        Kind::Texts => texts(&|_| true),
        Kind::Choices(known) => texts(&|text| known.contains(&text)),
        Kind::Amount => text.is_some_and(|text| text.parse::<Amount>().is_ok()),
        Kind::Object => value.is_object(),
        Kind::Rules => value.as_array().is_some_and(|v| v.len() <= MAX_LIST),
        Kind::Choice(known) => text.is_some_and(|text| known.contains(&text)),
    }
}

/// One value of a query.
fn from_text(field: &Field, text: &str) -> Result<Value, ApiError> {
    let value = match field.kind {
        Kind::Integer => text.parse::<u64>().ok().map(Value::from),
        Kind::Flag => text.parse::<bool>().ok().map(Value::from),
        Kind::Choice(known) | Kind::Choices(known) => known.contains(&text).then(|| text.into()),
        Kind::Amount => text.parse::<Amount>().ok().map(|_| text.into()),
        Kind::Text | Kind::Texts => Some(text.into()),
        Kind::Object | Kind::Rules => None,
    };
    value.ok_or_else(|| wrong(field))
}

fn wrong(field: &Field) -> ApiError {
    let expected = match field.kind {
        Kind::Text => "a text".to_owned(),
        Kind::Integer => "an integer from 0 on".to_owned(),
        Kind::Flag => "true or false".to_owned(),
        Kind::Texts => format!("a list of at most {MAX_LIST} texts"),
        Kind::Amount => "an amount as a text of digits, like \"12.50\"".to_owned(),
        Kind::Object => "an object".to_owned(),
        Kind::Rules => "a list of objects".to_owned(),
        Kind::Choice(known) => format!("one of {}", known.join(", ")),
        Kind::Choices(known) => format!("a list of {}", known.join(", ")),
    };
    let name = field.name;
    ApiError::field(name, "invalid_value", format!("`{name}` must be {expected}."))
}

#[cfg(test)]
mod tests {
    use super::super::table::{may, must};
    use super::*;

    const FIELDS: &[Field] = &[
        must("id", Kind::Text, "which"),
        may("many", Kind::Texts, ""),
        may("count", Kind::Integer, ""),
        may("amount", Kind::Amount, ""),
        may("way", Kind::Choice(&["up", "down"]), ""),
    ];

    fn said(result: Result<Input, ApiError>) -> String {
        match result {
            Ok(input) => Value::Object(input.0).to_string(),
            Err(error) => error.message,
        }
    }

    #[test]
    fn queries_are_held_to_the_table() {
        let check = |query, expected| {
            assert_eq!(said(Input::of_query(query, FIELDS)), expected, "{query}");
        };
        check("id=a&many=b&many[]=c", r#"{"id":"a","many":["b","c"]}"#);
        check("id=%E4%B8%96&count=3", r#"{"id":"世","count":3}"#);
        check("", "`id` is missing: which.");
        check("id=a&id=b", "`id` is given twice.");
        check("id=a&count=-1", "`count` must be an integer from 0 on.");
        check("id=a&amount=1e3", "`amount` must be an amount as a text of digits, like \"12.50\".");
        check("id=a&way=left", "`way` must be one of up, down.");
        check("ids=a", "Unknown parameter: `ids`. Known here: id, many, count, amount, way.");
        let many = format!("id=a{}", "&many=x".repeat(257));
        check(&many, "`many` has more than 256 values.");
    }

    #[test]
    fn bodies_are_held_to_the_table() {
        let check = |body: &str, expected| {
            assert_eq!(said(Input::of_body(body.as_bytes(), FIELDS)), expected, "{body}");
        };
        check(r#"{"id":"a","many":["b"],"way":null}"#, r#"{"id":"a","many":["b"],"way":null}"#);
        check(r#"{"id":null}"#, "`id` must be a text.");
        check(
            r#"{"id":"a","amount":1.5}"#,
            "`amount` must be an amount as a text of digits, like \"12.50\".",
        );
        check("[]", "The request's body must be a JSON object.");
        check("", "`id` is missing: which.");
    }
}
