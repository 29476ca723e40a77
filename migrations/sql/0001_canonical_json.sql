-- Canonical JSON written by Postgres, as schemas 0001 and 0002 have it; 0003 leaves it to Python.

-- RFC 8785 canonical JSON -----------------------------------------------------------------------
-- Keys are ours or come through ledger.audit.append, which refuses keys outside ASCII: there, byte order
-- is the UTF-16 order the RFC asks for. Strings: to_json escapes exactly as the RFC wants.

CREATE FUNCTION jcs_number(value numeric) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    double_value double precision;
    plain numeric;
    shorter numeric;
    digits text;
    exponent integer;
BEGIN
    IF value = trunc(value) AND abs(value) <= 9007199254740991 THEN
        RETURN trim_scale(value)::text;
    END IF;
    double_value := value::double precision;
    plain := trim_scale(double_value::text::numeric);
    IF plain = 0 THEN
        RETURN '0';
    END IF;
    exponent := floor(log(abs(plain)))::integer;
    -- log may round at powers of ten: settle it by comparing.
    IF abs(plain) >= (10::numeric ^ (exponent + 1)) THEN
        exponent := exponent + 1;
    ELSIF abs(plain) < (10::numeric ^ exponent) THEN
        exponent := exponent - 1;
    END IF;
    digits := rtrim(ltrim(replace(abs(plain)::text, '.', ''), '0'), '0');
    -- Postgres prints the closest short text, ECMAScript the shortest: it may be one digit less.
    IF length(digits) > 15 THEN
        shorter := trim_scale(round(plain, length(digits) - 2 - exponent));
        -- (near the end of the range, rounding may leave it)
        IF abs(shorter) <= 1.7976931348623157e308 THEN
            IF shorter::double precision = double_value THEN
                plain := shorter;
                digits := rtrim(ltrim(replace(abs(plain)::text, '.', ''), '0'), '0');
            END IF;
        END IF;
    END IF;
    IF abs(plain) >= 1e-6 AND abs(plain) < 1e21 THEN
        RETURN plain::text;
    END IF;
    RETURN CASE WHEN plain < 0 THEN '-' ELSE '' END
        || left(digits, 1)
        || CASE WHEN length(digits) > 1 THEN '.' || substr(digits, 2) ELSE '' END
        || 'e' || CASE WHEN exponent < 0 THEN '-' ELSE '+' END || abs(exponent)::text;
END $$;

CREATE FUNCTION jcs(value jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    result text;
BEGIN
    CASE jsonb_typeof(value)
        WHEN 'object' THEN
            SELECT '{' || coalesce(
                       string_agg(to_json(key)::text || ':' || jcs(item), ',' ORDER BY key COLLATE "C"),
                       '') || '}'
              INTO result FROM jsonb_each(value) AS pairs(key, item);
        WHEN 'array' THEN
            SELECT '[' || coalesce(string_agg(jcs(item), ',' ORDER BY place), '') || ']'
              INTO result FROM jsonb_array_elements(value) WITH ORDINALITY AS items(item, place);
        WHEN 'number' THEN result := jcs_number((value #>> '{}')::numeric);
        WHEN 'string' THEN result := to_json(value #>> '{}')::text;
        ELSE result := value::text;
    END CASE;
    RETURN result;
END $$;

CREATE FUNCTION audit_append(
    event_kind text, event_actor text, event_model bigint, event_subject text,
    event_data jsonb, event_edits int8multirange DEFAULT NULL
) RETURNS bigint
LANGUAGE sql AS $$
    SELECT audit_append_canonical(
        event_kind, event_actor, event_model, event_subject, jcs(event_data), event_edits);
$$;
