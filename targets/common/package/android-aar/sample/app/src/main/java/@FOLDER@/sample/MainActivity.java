package @ID@.sample;

import android.app.Activity;
import android.os.Bundle;
import android.widget.TextView;

import @ID@.@CLASS@;

/** Runs the self-test on every accelerator until one passes, and shows the report. */
public final class MainActivity extends Activity {
    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        final TextView text = new TextView(this);
        text.setText("running the self-test");
        setContentView(text);
        new Thread() {
            @Override
            public void run() {
                final String report = report();
                runOnUiThread(new Runnable() {
                    @Override
                    public void run() {
                        text.setText(report);
                    }
                });
            }
        }.start();
    }

    private String report() {
        try {
            @CLASS@ model = @CLASS@.loadVerified(this);
            try {
                return model.selfTest().toString();
            } finally {
                model.close();
            }
        } catch (Exception e) {
            return e.toString();
        }
    }
}
