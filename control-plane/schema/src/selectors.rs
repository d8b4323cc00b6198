//! Selectors: labels (`a=b,c in (d,e),!f`), fields (`status.phase!=Running`) and `LabelSelector` objects.
//!
//! The API parses those of its queries here; strategies and controllers match objects with them. Texts of errors are
//! upstream's. Which fields a kind has is the caller's knowledge.

use serde_json::{Map, Value};

use crate::names;

/// All requirements must hold; none selects everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    pub equal: bool,
}

/// All terms must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldSelector {
    pub terms: Vec<FieldTerm>,
}

/// Upstream's whole message; it is answered with 400.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl LabelSelector {
    /// # Errors
    /// Bad grammar, or a key or value that no label can have.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        parser.selector().map_err(|error| SelectorError(format!("unable to parse requirement: {error}")))
    }

    /// Reads a `LabelSelector` object (`matchLabels`, `matchExpressions`). `Null` selects nothing and gives `None`.
    ///
    /// # Errors
    /// An operator that is none.
    pub fn from_object(object: &Value) -> Result<Option<Self>, SelectorError> {
        let Value::Object(object) = object else { return Ok(None) };
        let mut requirements = Vec::new();
        for (key, value) in object.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement { key: key.clone(), operator: Operator::In, values: vec![value] });
        }
        for expression in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            requirements.push(Requirement::from_object(expression)?);
        }
        Ok(Some(Self { requirements }))
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str))
    }

    /// The same with any source of labels.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|one| one.matches(label(&one.key)))
    }

    /// Whether an object's `metadata.labels` match.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(object.pointer("/metadata/labels").and_then(Value::as_object))
    }
}

impl Requirement {
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|one| one == value);
        match (self.operator, value) {
            (Operator::In, Some(value)) => listed(value),
            (Operator::NotIn, Some(value)) => !listed(value),
            (Operator::Exists, given) => given.is_some(),
            (Operator::DoesNotExist, given) => given.is_none(),
            (Operator::NotIn, None) => true,
            (Operator::GreaterThan, Some(value)) => self.compare(value).is_some_and(|(label, bound)| label > bound),
            (Operator::LessThan, Some(value)) => self.compare(value).is_some_and(|(label, bound)| label < bound),
            (_, None) => false,
        }
    }

    fn compare(&self, value: &str) -> Option<(i64, i64)> {
        Some((value.parse().ok()?, self.values.first()?.parse().ok()?))
    }

    fn from_object(expression: &Value) -> Result<Self, SelectorError> {
        let text = |key: &str| expression.get(key).and_then(Value::as_str).unwrap_or_default();
        let operator = match text("operator") {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::GreaterThan,
            "Lt" => Operator::LessThan,
            other => return Err(SelectorError(format!("\"{other}\" is not a valid label selector operator"))),
        };
        let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
        let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(Self { key: text("key").to_owned(), operator, values })
    }

    /// Upstream's checks on a parsed requirement; it joins several faults with commas in brackets.
    fn check(self) -> Result<Self, String> {
        let mut errors: Vec<String> = names::qualified_name(&self.key)
            .into_iter()
            .map(|error| format!("key: Invalid value: {:?}: {error}", self.key))
            .collect();
        if matches!(self.operator, Operator::GreaterThan | Operator::LessThan) {
            for value in self.values.iter().filter(|value| value.parse::<i64>().is_err()) {
                errors.push(format!(
                    "values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                ));
            }
        }
        for (index, value) in self.values.iter().enumerate() {
            for error in names::label_value(value) {
                errors.push(format!("values[{index}][{}]: Invalid value: {value:?}: {error}", self.key));
            }
        }
        match errors.len() {
            0 => Ok(self),
            1 => Err(errors.remove(0)),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

/// Longer symbols first.
const SYMBOLS: [&str; 10] = ["==", "!=", "=", "!", ",", "(", ")", ">", "<", " "];

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let symbol = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol));
        let length = match symbol {
            Some(symbol) => {
                tokens.push(Token::Symbol(symbol));
                symbol.len()
            }
            None => {
                let end = rest.find(|c: char| c.is_whitespace() || "=!,()<>".contains(c)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_owned()));
                end
            }
        };
        rest = rest[length.max(1)..].trim_start();
    }
    tokens.push(Token::End);
    tokens
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Symbol(symbol) => symbol,
            Self::End => "",
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn take(&mut self, symbol: &'static str) -> bool {
        let found = *self.peek() == Token::Symbol(symbol);
        self.at += usize::from(found);
        found
    }

    fn selector(&mut self) -> Result<LabelSelector, String> {
        let mut requirements = Vec::new();
        if *self.peek() == Token::End {
            return Ok(LabelSelector { requirements });
        }
        loop {
            requirements.push(self.requirement()?);
            match self.next() {
                Token::End => return Ok(LabelSelector { requirements }),
                Token::Symbol(",") if matches!(self.peek(), Token::Word(_) | Token::Symbol("!")) => {}
                Token::Symbol(",") => {
                    return Err(format!("found '{}', expected: identifier after ','", self.peek().text()));
                }
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        if self.take("!") {
            let key = self.word()?;
            return Requirement { key, operator: Operator::DoesNotExist, values: Vec::new() }.check();
        }
        let key = self.word()?;
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement { key, operator: Operator::Exists, values: Vec::new() }.check();
        }
        let (operator, values) = match self.next() {
            Token::Symbol("=" | "==") => (Operator::In, vec![self.value()?]),
            Token::Symbol("!=") => (Operator::NotIn, vec![self.value()?]),
            Token::Symbol(">") => (Operator::GreaterThan, vec![self.value()?]),
            Token::Symbol("<") => (Operator::LessThan, vec![self.value()?]),
            Token::Word(word) if word == "in" => (Operator::In, self.values()?),
            Token::Word(word) if word == "notin" => (Operator::NotIn, self.values()?),
            other => {
                let wanted = "in, notin, =, ==, !=, gt, lt";
                return Err(format!("found '{}', expected: {wanted}", other.text()));
            }
        };
        Requirement { key, operator, values }.check()
    }

    fn word(&mut self) -> Result<String, String> {
        match self.next() {
            Token::Word(word) => Ok(word),
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// The right side of `=`: it may be empty.
    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            _ => self.word(),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        if !self.take("(") {
            return Err(format!("found '{}' expected: '('", self.peek().text()));
        }
        let mut values = std::collections::BTreeSet::new();
        loop {
            match self.next() {
                Token::Word(word) => {
                    values.insert(word);
                    match self.next() {
                        Token::Symbol(",") => {
                            if *self.peek() == Token::Symbol(")") {
                                values.insert(String::new());
                            }
                        }
                        Token::Symbol(")") => return Ok(values.into_iter().collect()),
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Symbol(",") => {
                    values.insert(String::new());
                }
                Token::Symbol(")") => return Ok(values.into_iter().collect()),
                other => return Err(format!("found '{}', expected: ',', or identifier", other.text())),
            }
        }
    }
}

impl FieldSelector {
    /// # Errors
    /// A term without an operator, or a bad escape.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_terms(text).into_iter().filter(|term| !term.is_empty()) {
            let invalid = || SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'"));
            let (at, operator) = operator(&term).ok_or_else(invalid)?;
            let value = unescape(&term[at + operator.len()..])?;
            terms.push(FieldTerm { field: term[..at].to_owned(), value, equal: operator != "!=" });
        }
        Ok(Self { terms })
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// `field` gives a field's value, `None` where the kind has no such field.
    pub fn matches(&self, field: impl Fn(&str) -> Option<String>) -> bool {
        self.terms.iter().all(|term| (field(&term.field).unwrap_or_default() == term.value) == term.equal)
    }

    /// The value a field must have, if the selector says so.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }

    /// # Errors
    /// A field that the kind cannot select.
    pub fn check(&self, supported: impl Fn(&str) -> bool) -> Result<(), SelectorError> {
        match self.terms.iter().find(|term| !supported(&term.field)) {
            Some(term) => Err(unsupported_field(&term.field)),
            None => Ok(()),
        }
    }
}

pub fn unsupported_field(field: &str) -> SelectorError {
    SelectorError(format!("field label not supported: {field}"))
}

/// Commas end terms, except escaped ones.
fn split_terms(text: &str) -> Vec<String> {
    let (mut terms, mut term, mut escaped) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(std::mem::take(&mut term));
            continue;
        }
        escaped = c == '\\' && !escaped;
        term.push(c);
    }
    terms.push(term);
    terms
}

fn operator(term: &str) -> Option<(usize, &'static str)> {
    (0..term.len()).filter(|at| term.is_char_boundary(*at)).find_map(|at| {
        ["!=", "==", "="].into_iter().find(|operator| term[at..].starts_with(operator)).map(|found| (at, found))
    })
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some(next @ ('\\' | ',' | '=')) => plain.push(next),
                Some(next) => {
                    return Err(SelectorError(format!("invalid field selector: invalid escape sequence: \\{next}")));
                }
                None => return Err(SelectorError("invalid field selector: invalid escape sequence: \\".to_owned())),
            },
            ',' | '=' => {
                return Err(SelectorError(format!("invalid field selector: unescaped character in value: {c}")));
            }
            c => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_match_as_upstream_does() {
        let labels = json!({"app": "web", "tier": "front", "n": "5", "empty": ""});
        for (selector, wanted) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("absent!=web", true),
            ("app in (web, api)", true),
            ("app notin (web)", false),
            ("absent notin (x)", true),
            ("app", true),
            ("!app", false),
            ("! absent", true),
            ("n>4", true),
            ("n<5", false),
            ("empty=", true),
            ("in in (in)", false),
            ("a.b/c=d", false),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}"));
            assert_eq!(parsed.matches(labels.as_object()), wanted, "{selector}");
        }
    }

    #[test]
    fn bad_label_selectors_get_upstreams_words() {
        for (selector, wanted) in [
            ("a===b", "unable to parse requirement: found '=', expected: identifier"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a=b,", "unable to parse requirement: found '', expected: identifier after ','"),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap_err().to_string(), wanted, "{selector}");
        }
    }

    #[test]
    fn selector_objects_match() {
        let object = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["d"]}]});
        let selector = LabelSelector::from_object(&object).unwrap().unwrap();
        assert!(selector.matches_object(&json!({"metadata": {"labels": {"a": "b"}}})));
        assert!(!selector.matches_object(&json!({"metadata": {"labels": {"a": "b", "c": "d"}}})));
        assert_eq!(LabelSelector::from_object(&Value::Null), Ok(None));
    }

    #[test]
    fn field_selectors_split_escape_and_compare() {
        let selector = FieldSelector::parse(r"metadata.name=a\,b,status.phase!=Running").unwrap();
        let value = |field: &str| Some(if field == "metadata.name" { "a,b" } else { "Pending" }.to_owned());
        assert!(selector.matches(value));
        assert_eq!(selector.required("metadata.name"), Some("a,b"));
        assert_eq!(selector.required("status.phase"), None);
        assert_eq!(
            selector.check(|field| field == "x").unwrap_err().to_string(),
            "field label not supported: metadata.name"
        );
        assert!(FieldSelector::parse("nothing").is_err());
    }
}
