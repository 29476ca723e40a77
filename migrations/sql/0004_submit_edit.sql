-- What an edit asks for, to tell the same request from another.
CREATE FUNCTION edit_content(e edits) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_array(
        e.prompt, e.target, e.subject, e.relation, e.paraphrases, e.locality, e.portability)::text;
$$;

-- As before, and: the same request again adds nothing; a key names one content; a person may correct
-- what is their own; the caller may bring the id, so that ids follow the order of a file.
CREATE FUNCTION submit_edit(
    p_model bigint, p_actor text, p_prompt text, p_target text, p_subject text, p_relation text,
    p_paraphrases jsonb, p_locality jsonb, p_portability jsonb, p_reason text, p_source text,
    p_key text, p_fact text, p_salt bytea, p_digest text, p_priority smallint,
    p_not_before timestamptz, p_expires_at timestamptz, p_id bigint DEFAULT NULL
) RETURNS TABLE (
    edit_id bigint, duplicate boolean, state edit_state, superseded bigint[], contradicts bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    needs_approval boolean;
    new_id bigint;
    new_state edit_state;
    rival bigint;
    waits boolean;
    replaced bigint[] := '{}';
    replaced_states text;
    moves text;
    same boolean;
    -- What is asked for, apart from when and why.
    content text := jsonb_build_array(
        p_prompt, p_target, p_subject, p_relation, p_paraphrases, p_locality, p_portability)::text;
BEGIN
    -- (a lock of nothing is none: the functions are strict)
    PERFORM pg_advisory_xact_lock_shared(1296387652, p_model::integer),
            pg_advisory_xact_lock(hashtextextended(p_key, p_model)),
            pg_advisory_xact_lock(hashtextextended(p_fact, -p_model));
    SELECT approval INTO needs_approval FROM models WHERE id = p_model;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no model %', p_model USING ERRCODE = 'MD404';
    END IF;
    IF p_key IS NOT NULL THEN
        SELECT e.id, e.state, edit_content(e) = content INTO new_id, new_state, same FROM edits AS e
         WHERE e.model_id = p_model AND e.idempotency_key = p_key;
        IF FOUND THEN
            IF NOT same THEN
                RAISE EXCEPTION 'key % was used for edit % with other content', p_key, new_id
                      USING ERRCODE = 'MD409';
            END IF;
            RETURN QUERY SELECT new_id, true, new_state, '{}'::bigint[], NULL::bigint;
            RETURN;
        END IF;
    END IF;
    -- The same again is no second edit, unless something else was asked of the fact meanwhile. What
    -- was set aside or rejected is not tried again by being sent again: a person says so.
    IF p_key IS NULL THEN
        SELECT e.id, e.state, edit_content(e) = content INTO new_id, new_state, same FROM edits AS e
         WHERE e.model_id = p_model AND e.fact_key = p_fact::uuid
           AND e.state IN ('submitted', 'queued', 'awaiting_approval', 'claimed', 'applied', 'live',
                           'quarantined', 'failed', 'rejected')
         ORDER BY e.id DESC LIMIT 1;
        IF FOUND AND same THEN
            RETURN QUERY SELECT new_id, true, new_state, '{}'::bigint[], NULL::bigint;
            RETURN;
        END IF;
    END IF;
    IF p_expires_at <= clock_timestamp() THEN
        RAISE EXCEPTION 'expires_at % is already past', p_expires_at USING ERRCODE = 'MD400';
    END IF;
    -- Correcting oneself needs nobody else, whatever way it is sent. Another person does, whatever
    -- source they name; and so do two named sources that say different things.
    SELECT max(e.id) FILTER (WHERE (e.submitted_by <> p_actor
                                    OR (e.source <> p_source
                                        AND e.source !~ '^(cli|file|pipe|manual)(:|$)'
                                        AND p_source !~ '^(cli|file|pipe|manual)(:|$)'))
                               AND lower(btrim(e.target)) <> lower(btrim(p_target))),
           coalesce(bool_or(e.state IN ('submitted', 'queued')), false)
      INTO rival, waits FROM edits AS e
     WHERE e.model_id = p_model AND e.fact_key = p_fact::uuid
       AND (e.state IN ('submitted', 'queued') OR e.state IN ('claimed', 'applied', 'live'));
    new_id := coalesce(p_id, nextval('edits_id_seq'));
    IF needs_approval OR rival IS NOT NULL THEN
        new_state := 'awaiting_approval';
    ELSE
        new_state := CASE WHEN p_not_before > clock_timestamp() THEN 'submitted' ELSE 'queued' END;
    END IF;
    IF waits AND new_state <> 'awaiting_approval' THEN
        WITH old AS (
            SELECT e.id, e.state FROM edits AS e
             WHERE e.model_id = p_model AND e.fact_key = p_fact::uuid AND e.state IN ('submitted', 'queued')
               FOR UPDATE
        ), moved AS (
            UPDATE edits AS e SET state = 'superseded', superseded_by = new_id
              FROM old WHERE e.id = old.id RETURNING old.id, old.state
        )
        SELECT coalesce(array_agg(moved.id), '{}'),
               string_agg(',{"edits":"' || moved.id || '","from":"' || moved.state
                          || '","to":"superseded"}', '' ORDER BY moved.id)
          INTO replaced, replaced_states FROM moved;
    END IF;
    INSERT INTO edits (id, model_id, state, prompt, target, subject, relation, paraphrases, locality,
                       portability, reason, source, submitted_by, idempotency_key, fact_key, salt,
                       content_digest, priority, not_before, expires_at)
    VALUES (new_id, p_model, new_state, p_prompt, p_target, p_subject, p_relation, p_paraphrases,
            p_locality, p_portability, p_reason, p_source, p_actor, p_key, p_fact::uuid, p_salt, p_digest,
            p_priority, p_not_before, p_expires_at);
    moves := '[{"edits":"' || new_id || '","from":null,"to":"' || new_state || '"}'
        || coalesce(replaced_states, '') || ']';
    PERFORM audit_append_canonical(
        'edit.submitted', p_actor, p_model, 'edit:' || new_id,
        '{"contradicts":' || coalesce(rival::text, 'null')
            || ',"digest":' || to_json(p_digest)
            || ',"moves":' || moves
            || ',"reason":' || coalesce(to_json(p_reason)::text, 'null')
            || ',"source":' || to_json(p_source) || '}',
        CASE WHEN replaced = '{}' THEN int8multirange(int8range(new_id, new_id, '[]'))
             ELSE multirange_of(replaced || new_id) END);
    RETURN QUERY SELECT new_id, false, new_state, replaced, rival;
END $$;
